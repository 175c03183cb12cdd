# Everything sets itself up: make replay, make compare, make stack, make test, make simulate, make fuzz, make lint.
.PHONY: replay compare stack test stress simulate simulate-mutants fuzz lint format clean
.DELETE_ON_ERROR:
export PATH := $(CURDIR)/.venv/bin:$(PATH)

NATIVE := $(wildcard paramserver/native/* streaming/live/native/*)
SOURCES := basis streaming paramserver trainer serving minutely stack tests benchmarks
CXX_SOURCES := $(shell git ls-files '*.cpp' '*.hpp' 2>/dev/null)

replay: .venv/ready
	@minutely replay movielens $(ARGS)

compare: .venv/ready
	@minutely compare movielens $(ARGS)

stack: .venv/ready
	@python -m stack

test: .venv/ready
	@scripts/test

# Readers of a table beside its writer, on every instruction set of this machine: SECONDS=n in all.
SECONDS := 600
stress: .venv/ready
	@STRESS_SECONDS=$(SECONDS) tests/paramserver/native/run.sh "" --verbose -R stress

# SEEDS=n runs n seeds (FIRST=k the first), SEED=k one of them again with what happened in it.
simulate: .venv/ready
	@SEEDS=$(SEEDS) SEED=$(SEED) FIRST=$(FIRST) python -m tests.simulation.simulate

simulate-mutants: .venv/ready
	@SEEDS=$(SEEDS) MUTANT="$(MUTANT)" python -m tests.simulation.mutants

# RECORDS=n hostile records in all into every decoder of what others wrote, SEED=k another choice of them.
RECORDS := 20000
fuzz: .venv/ready
	@python -m tests.fuzz --records $(RECORDS) --seed $(or $(SEED),1)

lint: .venv/ready
	ruff check $(SOURCES)
	ruff format --check $(SOURCES)
	mypy
	$(if $(CXX_SOURCES),clang-format --dry-run --Werror $(CXX_SOURCES))

format: .venv/ready
	ruff check --fix $(SOURCES)
	ruff format $(SOURCES)
	$(if $(CXX_SOURCES),clang-format -i $(CXX_SOURCES))

clean:
	rm -rf .venv build runs

.venv/ready: pyproject.toml CMakeLists.txt scripts/setup $(NATIVE)
	@scripts/setup
