test_that("ten training steps give the losses and weights of torch.nn's layer", {
  skip_without_zipfmax()
  torch <- reticulate::import("torch")
  case <- new_case("float64")
  theirs <- torch$nn$AdaptiveLogSoftmaxWithLoss(12L, 50L, list(6L, 20L), div_value = 2, head_bias = TRUE)
  theirs$to(torch$float64)
  theirs$load_state_dict(case$layer$module$state_dict())
  optimizer <- torch$optim$SGD(theirs$parameters(), lr = 0.5, momentum = 0.9)
  their_step <- function() {
    optimizer$zero_grad()
    loss <- theirs(to_tensor(case$input, "float64"), to_tensor(case$target - 1, "int64"))$loss
    loss$backward()
    optimizer$step()
    from_tensor(loss)
  }

  ours <- case$layer$optimizer("SGD", lr = 0.5, momentum = 0.9)
  losses <- replicate(10, case$layer$train_step(ours, case$input, case$target))
  expect_equal(losses, replicate(10, their_step()), tolerance = 1e-12)
  expect_lt(losses[10], losses[1] / 2)
  expect_equal(lapply(case$layer$parameters, from_tensor), lapply(theirs$state_dict(), from_tensor), tolerance = 1e-12)
})

test_that("the optimizer is one of torch's, and nothing else trains", {
  skip_without_zipfmax()
  case <- new_case()
  expect_s3_class(case$layer$optimizer("Adam"), "torch.optim.adam.Adam")
  expect_error(case$layer$optimizer("Adm"), 'torch.optim has no optimizer "Adm"')
  expect_error(case$layer$train_step("SGD", case$input, case$target), "optimizer should be one of torch's")
})
