library(testthat)
library(zipfmax)

test_check("zipfmax")
