# make run · make test · make check · make bench · make chaos · make brokers · make brokers-down · make readme · make clean
# Needs Python 3.11 or newer and make; everything else is installed into .venv, once.
#
#   make run ARGS="--help"            further arguments for the command
#   make test ARGS="-k reload -x"     further arguments for pytest
#   make test JOBS=0                  one test after the other
#   make run PYTHON=/path/to/python   another interpreter

ARGS =
PYTHON =
RUN = @PYTHON="$(PYTHON)" sh .ci/environment run
DEV = @PYTHON="$(PYTHON)" sh .ci/environment dev

.PHONY: run test lint check bench chaos brokers brokers-down readme clean

# exec: the worker itself is what make waits for, so that signals reach it and nothing stands between
run:
	$(RUN) && exec .venv/bin/platform run $(ARGS)

# most tests wait for processes more than they compute: more of them at once than a small machine has cores
JOBS = 4
PYTEST = .venv/bin/pytest --numprocesses=$(JOBS) --dist=loadgroup

test:
	$(DEV) && exec $(PYTEST) $(ARGS)

lint:
	$(DEV)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

check: lint
	exec $(PYTEST) $(ARGS)

# up to ten minutes, on every broker that can be had; ARGS="--quick --broker sqlite" is shorter, ARGS=--help tells the rest
bench:
	$(DEV) && exec .venv/bin/python benchmarks/run.py $(ARGS)

# the kill tests of tests/acceptance, with many rounds instead of a few, on every broker that can be had: about an hour, or a part
# by ARGS="-k kafka"; each test prints what it did, what ran again and why
ROUNDS = 60
chaos:
	$(DEV) && HANDRAIL_CHAOS_ROUNDS=$(ROUNDS) exec .venv/bin/pytest tests/acceptance -m chaos --timeout=3600 -s $(ARGS)

# a RabbitMQ and a Kafka of this checkout's own, on loopback, which tests and you may use until brokers-down; the tests
# start them by themselves, and anew each time, where these do not run
brokers:
	$(DEV)
	@.venv/bin/python scripts/brokers/rabbitmq.py up
	@.venv/bin/python scripts/brokers/kafka.py up

brokers-down:
	$(DEV)
	@.venv/bin/python scripts/brokers/rabbitmq.py down
	@.venv/bin/python scripts/brokers/kafka.py down

# the README's capability table, as the adapters state it
readme:
	$(DEV) && exec .venv/bin/python .ci/readme.py

# the messages in .platform are not ours to throw away
clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
