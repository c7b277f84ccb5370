# Between arrays of R and tensors of torch, by their bytes. reticulate's own way is NumPy's binary interface,
# which versions of reticulate built for NumPy 1 refuse to use with NumPy 2.

to_tensor <- function(x, dtype = "float32") {
  if (!is.numeric(x)) {
    stop("x should be numeric, but is ", class(x)[1], call. = FALSE)
  }
  torch <- python_module("torch")
  dtype <- torch_dtype(dtype)
  if (!dtype$is_floating_point && anyNA(x)) {
    stop("a tensor of whole numbers cannot hold NA", call. = FALSE)
  }
  shape <- r_shape(x)
  if (length(x) == 0) {
    return(torch$empty(as.list(shape), dtype = dtype))
  }
  # R stores the first index fastest and torch the last, so the axes are reversed.
  tensor <- torch$frombuffer(writeBin(as.double(x), raw()), dtype = torch$float64)
  tensor$reshape(as.list(rev(shape)))$permute(reversed_axes(shape))$to(dtype)$contiguous()
}

from_tensor <- function(tensor) {
  if (!is_tensor(tensor)) {
    stop("tensor should be a torch tensor, but is ", class(tensor)[1], call. = FALSE)
  }
  torch <- python_module("torch")
  shape <- tensor_shape(tensor)
  flat <- torch$Tensor$detach(tensor)$cpu()$to(torch$float64)$permute(reversed_axes(shape))$reshape(list(-1L))
  bytes <- reticulate::import("numpy", convert = FALSE)$asarray(flat)$tobytes()
  bytes <- reticulate::import_builtins(convert = FALSE)$bytearray(bytes)
  values <- readBin(reticulate::py_to_r(bytes), "double", prod(shape))
  if (length(shape) > 1) dim(values) <- shape
  values
}

# A plain vector is one axis.
r_shape <- function(x) {
  if (is.null(dim(x))) length(x) else dim(x)
}

tensor_shape <- function(tensor) {
  as.integer(unlist(reticulate::import_builtins()$list(tensor$shape)))
}

reversed_axes <- function(shape) {
  as.list(rev(seq_along(shape)) - 1L)
}

torch_dtype <- function(dtype) {
  if (inherits(dtype, "torch.dtype")) {
    return(dtype)
  }
  torch <- python_module("torch")
  if (!is.character(dtype) || length(dtype) != 1 || !reticulate::py_has_attr(torch, dtype) ||
    !inherits(torch[[dtype]], "torch.dtype")) {
    stop("dtype should be the name of one of torch's, such as \"float32\", but is ", toString(dtype), call. = FALSE)
  }
  torch[[dtype]]
}
