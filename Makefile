# Every target sets up what it needs in .venv first; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
# So many processes run tests; each needs about 2 GB of memory.
JOBS ?= 2
# For pytest, such as --long; that one is for the notebooks, too.
OPTIONS ?=

.PHONY: help train lab workbook judge test test-all test-pythons notebooks notebooks-all exercises pretrained bench bench-quick lint site site-check book links clean

help:
	@echo "make train          set up, then train on MNIST and write pictures (about two minutes on two cores)"
	@echo "make lab            set up, then open the chapters in JupyterLab"
	@echo "make workbook       set up, and make workbook/: a package in which you write the functions, with checks"
	@echo "make judge FILE=x.py   run a VAE of your own in one file and say what it is worth"
	@echo "make test           set up, then run every notebook and every test, but for what is marked long"
	@echo "make test-all       all notebooks with their slow cells, all tests (two hours and more on two cores)"
	@echo "make test-pythons   the wheel and the tutorial's tests on the other Pythons of this machine"
	@echo "make lint           ruff and codespell"
	@echo "make notebooks      run the notebooks and save their outputs; slow cells keep theirs"
	@echo "make notebooks-all  the same with the slow cells"
	@echo "make exercises      write the students' copies of the exercises again"
	@echo "make pretrained     train the weights and pictures that come with the course"
	@echo "make bench          set up PyTorch and JAX too, run all benchmarks, write the README's table"
	@echo "make bench-quick    the benchmarks on little data, without PyTorch and JAX"
	@echo "make site           build the site with Quarto into _docs/ (says where to get Quarto if there is none)"
	@echo "make site-check     without Quarto: preview every page in _site_check/; check links, maths, images, weight"
	@echo "make book           the course as EPUB and PDF, and slides for two lectures, in _book/ (Chromium prints the PDF)"
	@echo "make links          Colab badges and other links to the repository that settings.ini names"
	@echo "make clean          remove .venv"

.venv/library: settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; choose one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/lab: .venv/library
	$(BIN)/python -m pip install --quiet --editable '.[lab]'
	touch $@

.venv/dev: .venv/library
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/bench: .venv/library
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

train: .venv/library
	$(BIN)/vae-course train

lab: .venv/lab
	$(BIN)/jupyter lab --notebook-dir nbs

workbook: .venv/library
	$(BIN)/python tools/workbook.py

judge: .venv/library
	$(BIN)/python tools/workbook/check.py $(FILE)

# The notebooks as nbdev_test runs them, each in a process of its own; but TensorFlow is loaded once.
test: .venv/dev
	$(BIN)/python tools/test_notebooks.py --workers $(JOBS) $(filter --long,$(OPTIONS))
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(OPTIONS)

test-all: .venv/dev
	$(BIN)/python tools/test_notebooks.py --workers $(JOBS) --slow
	LAB_CHAPTERS=all $(BIN)/pytest -n $(JOBS) --dist loadfile --long $(OPTIONS)

test-pythons: .venv/dev
	$(BIN)/python tools/other_pythons.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/codespell

notebooks: .venv/dev
	$(BIN)/python tools/execute_notebooks.py
	$(BIN)/nbdev_clean

notebooks-all: .venv/dev
	$(BIN)/python tools/execute_notebooks.py --slow
	$(BIN)/nbdev_clean

exercises: .venv/dev
	$(BIN)/python tools/exercises.py

pretrained: .venv/library
	rm -rf runs/pretrained
	$(BIN)/vae-course train --recipe tutorial --out runs/pretrained
	cp runs/pretrained/cvae.keras vae_course/pretrained/tutorial.keras
	cp runs/pretrained/cvae.json vae_course/pretrained/tutorial.json
	mkdir -p nbs/images
	cp runs/pretrained/cvae.gif runs/pretrained/manifold.png nbs/images/

BENCHMARKS := time_to_elbo throughput evaluation log_marginal manifold memory scaling explorer

bench: .venv/bench
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/time_to_elbo.py --best
	$(BIN)/python benchmarks/table.py

bench-quick: .venv/library
	printf '%s\n' $(BENCHMARKS) | xargs -P 2 -I{} $(BIN)/python benchmarks/{}.py --quick
	$(BIN)/python benchmarks/table.py --quick

site: .venv/dev
	$(BIN)/python tools/build_site.py site

site-check: .venv/dev
	$(BIN)/python tools/build_site.py check

book: .venv/dev
	$(BIN)/python tools/book.py

links: .venv/dev
	$(BIN)/python tools/links.py
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

clean:
	rm -rf .venv
