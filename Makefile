# Each target does its own set-up in .venv; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup report test trials kernels lint docs compile gate dist clean

VENV := .venv
BIN := $(VENV)/bin
OUT := reports/out/latest
BASE := HEAD

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# Two environments in one: what the report needs, and what tests and checks need besides (TensorFlow is large).
# For the report Python compiles what is imported, a small part of what is installed, and keeps it; for all targets
# every core compiles the whole, where pip would take one.
unexport PYTHONDONTWRITEBYTECODE
$(VENV)/.report: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[harness,labels,paddle]'
	touch $@

$(VENV)/.ready: $(VENV)/.report
	$(BIN)/pip install --quiet --no-compile -c constraints.txt -e '.[harness,labels,dev,docs,paddle,tensorflow,triton]'
	-$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
	touch $@

setup: $(VENV)/.ready  ## the environment of every other target

report: $(VENV)/.report  ## verify, a quick sweep, the page; prints the page's path
	rm -rf $(OUT)
	$(BIN)/zipfmax verify --grid quick --out $(OUT)
	$(BIN)/zipfmax mutants --out $(OUT) --resume
	$(BIN)/zipfmax conformance --out $(OUT) --resume
	$(BIN)/zipfmax sweep --preset quick --out $(OUT) --resume
	$(BIN)/zipfmax report $(OUT)

test: $(VENV)/.ready  ## every test but the long trials
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow' tests

trials: $(VENV)/.ready  ## the tests that take longest: killed and resumed runs, large pages, further shapes (minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow tests

kernels: $(VENV)/.ready  ## every test of the GPU kernels, on a GPU or under the interpreter, and of compiling them (minutes)
	ZIPFMAX_KERNEL_TESTS=all TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/impl/backends/triton
	ZIPFMAX_KERNEL_TESTS=all OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/bench/kernels
	ZIPFMAX_KERNEL_TESTS=all OMP_NUM_THREADS=1 $(BIN)/pytest tests/impl/parallel -k 'kernels or gpus'

lint: $(VENV)/.ready  ## ruff, mypy --strict, the direction of imports, the workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.ready  ## the documentation, into build/site; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo build/site/index.html

compile: $(VENV)/.ready  ## every kernel for every architecture, without a GPU; COMPILE=--quick for the largest of two
	$(BIN)/zipfmax compile $(COMPILE)

gate: $(VENV)/.ready  ## the gate's cells against the committed baseline, and what is suspect against BASE
	rm -rf reports/out/gate
	$(BIN)/zipfmax sweep --preset gate --processes 6 --threads 1 --out reports/out/gate
	$(BIN)/zipfmax gate reports/out/gate --baseline bench/baselines/cpu.jsonl --base $(BASE)

dist:  ## sdist and wheel in dist/, checked: metadata, and that the wheel runs where it alone is installed
	rm -rf dist build/dist
	python3 -m venv build/dist
	build/dist/bin/pip install --quiet build twine
	build/dist/bin/python -m build --outdir dist .
	build/dist/bin/twine check --strict dist/*
	build/dist/bin/pip install --quiet "$$(ls dist/*.whl)[harness]"
	cd build/dist && bin/zipfmax doctor && bin/zipfmax verify --cells forward-V60 --impl zipfmax:eager

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist reports/out
