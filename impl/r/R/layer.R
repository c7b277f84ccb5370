# The layer: a function of input and target whose members are reached by `$`, as of a module of R's torch.

nn_adaptive_log_softmax_with_loss <- function(in_features, n_classes, cutoffs, div_value = 4,
                                              head_bias = FALSE) {
  check_whole(in_features, "in_features", 1)
  check_whole(n_classes, "n_classes", 1)
  check_whole(cutoffs, "cutoffs", NULL)
  check_scalar(div_value, is.numeric(div_value), "div_value should be a number")
  check_scalar(head_bias, is.logical(head_bias), "head_bias should be TRUE or FALSE")
  module <- python_module("zipfmax")$AdaptiveLogSoftmaxWithLoss(
    as.integer(in_features), as.integer(n_classes), as.list(as.integer(cutoffs)),
    div_value = as.double(div_value), head_bias = head_bias
  )
  new_layer(module)
}

new_layer <- function(module) {
  torch <- python_module("torch")
  members <- new.env()
  members$module <- module

  members$forward <- function(input, target) {
    batch <- as_batch(module, input, target)
    if (is_tensor(input)) {
      result <- module(batch$input, batch$target)
      return(list(output = result$output, loss = result$loss))
    }
    result <- without_gradients(torch, module(batch$input, batch$target))
    list(output = from_tensor(result$output), loss = from_tensor(result$loss))
  }
  members$log_prob <- function(input) {
    if (is_tensor(input)) {
      return(module$log_prob(as_input(module, input)))
    }
    from_tensor(without_gradients(torch, module$log_prob(as_input(module, input))))
  }
  members$predict <- function(input) {
    labels <- torch$add(module$predict(as_input(module, input)), 1L)
    if (is_tensor(input)) {
      return(labels)
    }
    labels <- from_tensor(labels)
    storage.mode(labels) <- "integer"
    labels
  }

  members$optimizer <- function(name, ...) {
    if (!reticulate::py_has_attr(torch$optim, name)) {
      stop("torch.optim has no optimizer ", dQuote(name, FALSE), call. = FALSE)
    }
    torch$optim[[name]](unname(named_parameters(module)), ...)
  }
  members$train_step <- function(optimizer, input, target) {
    if (!inherits(optimizer, "torch.optim.optimizer.Optimizer")) {
      stop("optimizer should be one of torch's, such as layer$optimizer(\"SGD\", lr = 0.1), but is ",
        class(optimizer)[1],
        call. = FALSE
      )
    }
    batch <- as_batch(module, input, target)
    optimizer$zero_grad()
    loss <- module(batch$input, batch$target)$loss
    loss$backward()
    optimizer$step()
    from_tensor(loss)
  }

  members$to <- function(dtype = NULL, device = NULL) {
    module$to(device = device, dtype = if (!is.null(dtype)) torch_dtype(dtype))
    invisible(layer)
  }
  members$save <- function(path) {
    torch$save(module$state_dict(), path.expand(path))
    invisible(path)
  }
  members$load <- function(path) {
    module$load_state_dict(torch$load(path.expand(path), map_location = "cpu", weights_only = TRUE))
    invisible(layer)
  }
  makeActiveBinding("parameters", function() named_parameters(module), members)
  lockEnvironment(members, bindings = TRUE)

  layer <- structure(function(input, target) members$forward(input, target),
    class = "zipfmax_layer", members = members
  )
  layer
}

named_parameters <- function(module) {
  reticulate::import_builtins()$dict(module$named_parameters())
}

# Evaluates `code`, which is lazy, under torch.no_grad().
without_gradients <- function(torch, code) {
  with(torch$no_grad(), code)
}

`$.zipfmax_layer` <- function(x, name) {
  members <- attr(x, "members")
  if (!exists(name, members, inherits = FALSE)) {
    stop("a layer has no member ", dQuote(name, FALSE), "; it has ", toString(names(x)), call. = FALSE)
  }
  get(name, members)
}

`[[.zipfmax_layer` <- function(x, i) {
  `$.zipfmax_layer`(x, i)
}

names.zipfmax_layer <- function(x) {
  ls(attr(x, "members"))
}

.DollarNames.zipfmax_layer <- function(x, pattern = "") {
  grep(pattern, names(x), value = TRUE)
}

print.zipfmax_layer <- function(x, ...) {
  cat(reticulate::py_repr(x$module), "\n", sep = "")
  invisible(x)
}
