test_that("a matrix has the same rows and columns as its tensor", {
  skip_without_zipfmax()
  x <- matrix(c(1.5, -2, 3, 4, 5, 6), 2)
  tensor <- to_tensor(x)
  expect_identical(reticulate::py_repr(tensor), "tensor([[ 1.5000,  3.0000,  5.0000],\n        [-2.0000,  4.0000,  6.0000]])")
  expect_identical(from_tensor(tensor), x)
})

test_that("arrays of every number of axes come back as they went", {
  skip_without_zipfmax()
  for (x in list(c(1, 2, 3), array(1:24 / 2, c(2, 3, 4)), matrix(0, 0, 3), numeric(0), matrix(1:4 + 0, 1))) {
    expect_identical(from_tensor(to_tensor(x, "float64")), x)
  }
  expect_identical(from_tensor(reticulate::import("torch")$tensor(2.5)), 2.5)
})

test_that("tensors of other dtypes, with gradients or of unconverted modules come as numbers", {
  skip_without_zipfmax()
  torch <- reticulate::import("torch", convert = FALSE)
  expect_identical(from_tensor(torch$ones(2L, dtype = torch$bfloat16)), c(1, 1))
  expect_identical(from_tensor(torch$arange(3L)), c(0, 1, 2))
  expect_identical(from_tensor(torch$ones(2L, 1L, requires_grad = TRUE)$t()), matrix(1, 1, 2))
})

test_that("what makes no tensor is an error", {
  skip_without_zipfmax()
  expect_error(to_tensor("a"), "x should be numeric, but is character")
  expect_error(to_tensor(c(1, NA), "int64"), "cannot hold NA")
  expect_error(to_tensor(1, "float"), NA)
  expect_error(to_tensor(1, "Tensor"), "dtype should be the name of one of torch's")
  expect_error(from_tensor(1), "tensor should be a torch tensor, but is numeric")
})
