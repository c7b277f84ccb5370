# What the tests share: random cases, and the definition of Python's zipfmax_reference behind R's numbers.

skip_without <- function(module) {
  skip_if_not(reticulate::py_module_available(module), paste("the Python in use has no module", module))
}

skip_without_zipfmax <- function() {
  skip_without("zipfmax")
}

new_case <- function(dtype = "float32", head_bias = TRUE) {
  set.seed(1)
  reticulate::import("torch")$manual_seed(1L)
  layer <- nn_adaptive_log_softmax_with_loss(12, 50, c(6, 20), div_value = 2, head_bias = head_bias)
  layer$to(dtype = dtype)
  input <- matrix(rnorm(9 * 12), 9)
  input[] <- from_tensor(to_tensor(input, dtype)) # numbers that the dtype holds, the same for the definition
  list(layer = layer, input = input, target = c(1, 6, 7, 20, 21, 50, 3, 50, 10))
}

as_numpy <- function(x, dtype = "float64") {
  reticulate::import("numpy", convert = FALSE)$asarray(to_tensor(x, dtype))
}

from_numpy <- function(array) {
  from_tensor(reticulate::import("torch", convert = FALSE)$from_numpy(array))
}

# `truth` and `deviation` of output, loss, log_prob and the gradients, of the definition in float64.
definition_of <- function(case, dtype) {
  truth <- function(name) reticulate::import(paste0("zipfmax_reference.truth.", name), convert = FALSE)
  layout <- case$layer$module$layout
  weights <- lapply(case$layer$parameters, function(weight) as_numpy(from_tensor(weight)))
  hidden <- as_numpy(case$input)
  target <- as_numpy(case$target - 1, "int64")
  rounding <- reticulate::py_get_item(truth("budgets")$ROUNDING, dtype)
  row_weight <- as_numpy(rep(-1 / nrow(case$input), nrow(case$input)))

  results <- truth("definition")$adaptive(layout, weights, hidden, target)
  deviations <- truth("budgets")$adaptive(layout, weights, hidden, target, row_weight, rounding, gradients = TRUE)
  names <- c("output", "loss", paste0("grad.", names(weights)))
  get <- function(values) sapply(names, function(name) from_numpy(reticulate::py_get_item(values, name)))
  list(
    truth = get(results), deviation = get(deviations),
    log_prob = from_numpy(truth("definition")$adaptive_log_prob(layout, weights, hidden)),
    log_prob_deviation = from_numpy(truth("budgets")$adaptive_log_prob(layout, weights, hidden, rounding))
  )
}

# Every element within six standard deviations of what rounding does to it, as zipfmax's own contract asks.
expect_within <- function(values, truth, deviation) {
  expect_identical(dim(values), dim(truth))
  expect_length(values, length(truth))
  expect_lte(max(abs(values - truth) / deviation), 6)
}
