# The Python modules, imported when first used: loading this package starts no Python.

python_module <- function(name) {
  tryCatch(reticulate::import(name), error = function(error) {
    python <- reticulate::py_config()$python
    stop("Python cannot import ", name, ": ", trimws(conditionMessage(error)), "\n",
      "The Python in use is ", python, ". In a copy of zipfmax's repository,\n  ",
      python, " -m pip install .\ninstalls zipfmax and torch into it; RETICULATE_PYTHON in the environment, or ",
      "reticulate::use_python() at the start of a session, chooses another Python.",
      call. = FALSE
    )
  })
}
