test_that("a state_dict that Python saved gives Python's log-probabilities", {
  skip_without_zipfmax()
  torch <- reticulate::import("torch")
  case <- new_case("float64")
  theirs <- torch$nn$AdaptiveLogSoftmaxWithLoss(12L, 50L, list(6L, 20L), div_value = 2, head_bias = TRUE)
  theirs$to(torch$float64)
  expected <- from_tensor(theirs$log_prob(to_tensor(case$input, "float64")))
  path <- tempfile(fileext = ".pt")
  reticulate::py_run_string("import torch\ndef save(module, path): torch.save(module.state_dict(), path)")
  reticulate::py$save(theirs, path)

  expect_false(isTRUE(all.equal(case$layer$log_prob(case$input), expected)))
  case$layer$load(path)
  expect_equal(case$layer$log_prob(case$input), expected, tolerance = 1e-14)
})

test_that("what R saves loads into torch.nn's layer, and back into another of R's", {
  skip_without_zipfmax()
  torch <- reticulate::import("torch")
  case <- new_case("float64")
  path <- tempfile(fileext = ".pt")
  case$layer$save(path)
  expected <- case$layer$log_prob(case$input)

  theirs <- torch$nn$AdaptiveLogSoftmaxWithLoss(12L, 50L, list(6L, 20L), div_value = 2, head_bias = TRUE)
  theirs$to(torch$float64)
  theirs$load_state_dict(torch$load(path))
  expect_equal(from_tensor(theirs$log_prob(to_tensor(case$input, "float64"))), expected, tolerance = 1e-14)

  other <- nn_adaptive_log_softmax_with_loss(12, 50, c(6, 20), div_value = 2, head_bias = TRUE)
  expect_identical(other$to(dtype = "float64")$load(path)$log_prob(case$input), expected)
})

test_that("a file of another layer's weights, or none, is an error that names what does not fit", {
  skip_without_zipfmax()
  path <- tempfile(fileext = ".pt")
  nn_adaptive_log_softmax_with_loss(12, 50, 10)$save(path)
  layer <- new_case()$layer
  expect_error(layer$load(path), "Missing key.*tail\\.1\\.0\\.weight")
  expect_error(layer$load(paste0(path, "-absent")), "No such file")
})
