test_that("the arguments and their defaults are those that R's torch documents", {
  expect_identical(
    as.list(formals(nn_adaptive_log_softmax_with_loss)),
    as.list(alist(in_features = , n_classes = , cutoffs = , div_value = 4, head_bias = FALSE))
  )
})

for (dtype in c("float32", "float64")) {
  for (head_bias in c(FALSE, TRUE)) {
    test_that(paste("output, loss, log_prob and gradients are the definition's in", dtype, "head_bias", head_bias), {
      skip_without_zipfmax()
      skip_without("zipfmax_reference.truth.definition")
      case <- new_case(dtype, head_bias)
      expected <- definition_of(case, dtype)

      result <- case$layer(case$input, case$target)
      expect_within(result$output, expected$truth$output, expected$deviation$output)
      expect_within(result$loss, expected$truth$loss, expected$deviation$loss)
      expect_within(case$layer$log_prob(case$input), expected$log_prob, expected$log_prob_deviation)

      case$layer(to_tensor(case$input, dtype), case$target)$loss$backward()
      for (name in names(case$layer$parameters)) {
        gradient <- from_tensor(case$layer$parameters[[name]]$grad)
        name <- paste0("grad.", name)
        expect_within(gradient, expected$truth[[name]], expected$deviation[[name]])
      }
    })
  }
}

test_that("predict gives the most probable label, counted from 1", {
  skip_without_zipfmax()
  case <- new_case()
  expect_identical(case$layer$predict(case$input), max.col(case$layer$log_prob(case$input), "first"))
})

test_that("the output of a row is the column of log_prob that its label names", {
  skip_without_zipfmax()
  case <- new_case("float64")
  log_prob <- case$layer$log_prob(case$input)
  expect_equal(case$layer(case$input, case$target)$output, log_prob[cbind(1:9, case$target)], tolerance = 1e-14)
  expect_equal(rowSums(exp(log_prob)), rep(1, 9), tolerance = 1e-14)
})

test_that("cutoffs count labels: with c(6, 20) labels 1 to 6 need no tail, 7 to 20 the first only", {
  skip_without_zipfmax()
  case <- new_case()
  input <- to_tensor(case$input)
  has_gradient <- function(labels) {
    layer <- new_case()$layer
    layer(input, rep_len(labels, 9))$loss$backward()
    names <- c("tail.0.1.weight", "tail.1.1.weight")
    unname(sapply(names, function(name) !is.null(layer$parameters[[name]]$grad)))
  }
  expect_identical(has_gradient(1:6), c(FALSE, FALSE))
  expect_identical(has_gradient(7:20), c(TRUE, FALSE))
  expect_identical(has_gradient(21:50), c(FALSE, TRUE))
})

test_that("tensors give tensors of the same values, with labels counted from 1 there too", {
  skip_without_zipfmax()
  case <- new_case("float64")
  input <- to_tensor(case$input, "float64")
  of_numbers <- case$layer(case$input, case$target)
  of_tensors <- case$layer(input, to_tensor(case$target, "int64"))
  expect_s3_class(of_tensors$loss, "torch.Tensor")
  expect_true(of_tensors$loss$requires_grad)
  expect_equal(from_tensor(of_tensors$output), of_numbers$output, tolerance = 1e-14)
  expect_equal(from_tensor(of_tensors$loss), of_numbers$loss, tolerance = 1e-14)
  expect_equal(from_tensor(case$layer$log_prob(input)), case$layer$log_prob(case$input), tolerance = 1e-14)
  expect_equal(from_tensor(case$layer$predict(input)), case$layer$predict(case$input))
})

test_that("one row may be a vector, and rows may lie in an array of any shape", {
  skip_without_zipfmax()
  case <- new_case("float64")
  whole <- case$layer(case$input, case$target)
  row <- case$layer(case$input[2, ], case$target[2])
  expect_equal(row$output, whole$output[2], tolerance = 1e-14)
  expect_equal(row$loss, -whole$output[2], tolerance = 1e-14)
  expect_identical(case$layer$predict(case$input[2, ]), case$layer$predict(case$input)[2])

  array <- case$layer(array(case$input, c(3, 3, 12)), matrix(case$target, 3))
  expect_equal(array$output, matrix(whole$output, 3), tolerance = 1e-14)
  expect_identical(dim(case$layer$log_prob(array(case$input, c(3, 3, 12)))), c(3L, 3L, 50L))
})

test_that("no rows give no outputs", {
  skip_without_zipfmax()
  layer <- new_case()$layer
  result <- layer(matrix(0, 0, 12), numeric(0))
  expect_identical(result, list(output = numeric(0), loss = NaN))
  expect_identical(layer$predict(matrix(0, 0, 12)), integer(0))
})
