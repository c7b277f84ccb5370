# What a call is given: checked in R's own numbering, then carried over to torch.

check_scalar <- function(x, is_type, should) {
  if (!is_type || length(x) != 1 || is.na(x)) {
    stop(should, ", but is ", toString(x), call. = FALSE)
  }
}

# One whole number not below `least`; with `least` NULL any number of them.
check_whole <- function(x, name, least) {
  whole <- is.numeric(x) && all(is.finite(x)) && all(x == floor(x)) && all(abs(x) <= .Machine$integer.max)
  if (!whole || (!is.null(least) && (length(x) != 1 || x < least))) {
    should <- if (is.null(least)) "whole numbers" else sprintf("one whole number from %d", least)
    stop(name, " should be ", should, ", but is ", toString(x), call. = FALSE)
  }
}

is_tensor <- function(x) {
  inherits(x, "torch.Tensor")
}

# An input [..., in_features] as a tensor; values of R get the layer's dtype and device.
as_input <- function(module, input) {
  if (!is_tensor(input)) {
    if (!is.numeric(input)) {
      stop("input should be a numeric matrix or a torch tensor, but is ", class(input)[1], call. = FALSE)
    }
    weight <- module$head$weight
    input <- to_tensor(input, weight$dtype)$to(weight$device)
  }
  shape <- tensor_shape(input)
  width <- if (length(shape) > 0) shape[length(shape)] else 0L
  if (width != module$in_features) {
    stop(sprintf("input should have in_features = %d columns, but has shape (%s)", module$in_features,
      toString(shape)),
    call. = FALSE
    )
  }
  input
}

# Input and target as tensors; the target's labels, counted from 1, are counted from 0 there.
as_batch <- function(module, input, target) {
  input <- as_input(module, input)
  rows <- utils::head(tensor_shape(input), -1)
  shape <- target_shape(target, length(rows) == 0)
  if (!identical(rows, shape)) {
    stop(sprintf("input and target should go together row by row, but input has shape (%s) and target (%s)",
      toString(tensor_shape(input)), toString(shape)),
    call. = FALSE
    )
  }
  check_labels(target, module$n_classes)
  if (!is_tensor(target)) {
    target <- to_tensor(target, "int64")$reshape(as.list(rows))$to(input$device)
  }
  list(input = input, target = python_module("torch")$sub(target, 1L))
}

# A single label of R goes with a single row, which is a vector, as the scalar that torch wants there.
target_shape <- function(target, is_single_row) {
  if (is_tensor(target)) {
    return(tensor_shape(target))
  }
  if (is_single_row && length(target) == 1) integer(0) else r_shape(target)
}

check_labels <- function(target, n_classes) {
  should <- sprintf("target should hold whole numbers from 1 to %d, since labels are counted from 1, but ", n_classes)
  if (is_tensor(target)) {
    if (prod(tensor_shape(target)) == 0) {
      return(invisible())
    }
    torch <- python_module("torch")
    range <- c(from_tensor(torch$amin(target)), from_tensor(torch$amax(target)))
    if (range[1] < 1 || range[2] > n_classes) {
      stop(should, "its values reach from ", plain(range[1]), " to ", plain(range[2]), call. = FALSE)
    }
  } else if (!is.numeric(target)) {
    stop(should, "is ", class(target)[1], call. = FALSE)
  } else {
    wrong <- which(is.na(target) | target != floor(target) | target < 1 | target > n_classes)
    if (length(wrong) > 0) {
      stop(should, "target[", plain(wrong[1]), "] is ", plain(target[wrong[1]]), call. = FALSE)
    }
  }
}

# A number as it was given: 1000001, not 1e+06.
plain <- function(number) {
  format(number, digits = 15, scientific = FALSE)
}
