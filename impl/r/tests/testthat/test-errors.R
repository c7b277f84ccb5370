test_that("labels outside 1 to n_classes are named in R's numbering", {
  skip_without_zipfmax()
  case <- new_case()
  with_third <- function(label) replace(case$target, 3, label)
  for (call in list(case$layer, function(...) case$layer$train_step(case$layer$optimizer("SGD", lr = 1), ...))) {
    expect_error(call(case$input, with_third(0)), "from 1 to 50, since labels are counted from 1, but target\\[3\\] is 0")
    expect_error(call(case$input, with_third(51)), "target\\[3\\] is 51")
    expect_error(call(case$input, with_third(1.5)), "target\\[3\\] is 1.5")
    expect_error(call(case$input, with_third(NA)), "target\\[3\\] is NA")
    expect_error(call(case$input, factor(case$target)), "but is factor")
    expect_error(call(case$input, to_tensor(with_third(0), "int64")), "its values reach from 0 to 50")
    expect_error(call(case$input, to_tensor(with_third(51), "int64")), "its values reach from 1 to 51")
  }
  expect_silent(case$layer(case$input, with_third(50)))
})

test_that("a label of a large label space is named with all its digits", {
  skip_without_zipfmax()
  layer <- nn_adaptive_log_softmax_with_loss(4, 1e6, 10, div_value = 4)
  expect_error(layer(matrix(0, 1, 4), 1e6 + 1), "from 1 to 1000000, .*target\\[1\\] is 1000001")
  expect_error(layer(matrix(0, 1, 4), to_tensor(1e6 + 1, "int64")), "reach from 1000001 to 1000001")
})

test_that("shapes that do not go together are named", {
  skip_without_zipfmax()
  case <- new_case()
  expect_error(case$layer(case$input[, -1], case$target), "in_features = 12 columns, but has shape \\(9, 11\\)")
  expect_error(case$layer(case$input, case$target[-1]), "input has shape \\(9, 12\\) and target \\(8\\)")
  expect_error(case$layer(case$input, matrix(case$target, 1)), "target \\(1, 9\\)")
  expect_error(case$layer(to_tensor(case$input), to_tensor(case$target[-1], "int64")), "target \\(8\\)")
  expect_error(case$layer$log_prob(1:3), "has shape \\(3\\)")
  expect_error(case$layer$predict(case$input[, -1]), "in_features = 12")
  expect_error(case$layer$predict(as.data.frame(case$input)), "numeric matrix or a torch tensor, but is data.frame")
})

test_that("arguments of no layer are errors", {
  skip_without_zipfmax()
  layer <- nn_adaptive_log_softmax_with_loss
  expect_error(layer(12, 50, c(20, 6)), "cutoffs should be a sequence of unique, positive integers")
  expect_error(layer(12, 50, c(6, 50)), "cutoffs should be")
  expect_error(layer(12, 50, c(6, 20.5)), "cutoffs should be whole numbers, but is 6, 20.5")
  expect_error(layer(0, 50, 6), "in_features should be one whole number from 1, but is 0")
  expect_error(layer(12, NA, 6), "n_classes should be")
  expect_error(layer(12, 50, 6, div_value = "a"), "div_value should be a number")
  expect_error(layer(12, 50, 6, head_bias = NA), "head_bias should be TRUE or FALSE")
})

test_that("a layer shows its arguments and gives its members by [[ too", {
  skip_without_zipfmax()
  case <- new_case()
  expect_output(print(case$layer), "in_features=12, n_classes=50, cutoffs=\\[6, 20\\]")
  expect_identical(case$layer[["predict"]](case$input), case$layer$predict(case$input))
})

test_that("a member that a layer lacks is an error that lists those it has", {
  skip_without_zipfmax()
  expect_error(new_case()$layer$logprob, 'no member "logprob"; it has forward, load, log_prob')
})
