# Every target makes what it needs, in .venv; nothing has to be installed by hand but Python and make.
PYTHON ?= python3
VENV ?= .venv
# Many tests wait, so more than the cores keep both busy; those with real processes bear one more.
WORKERS ?= 3
TEST_WORKERS ?= 4
# `make scale` loads that many services, with ten keys each.
SERVICES ?= 100000
PEERS ?= 5000
# `make oldest` and `make pooler` run these files and folders only, where some are named.
TESTS ?=

# With this set, each process of a test run or demo compiles every module again, which doubles the time of its start.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
# One stamp for each Python version: a virtual environment of another version is made again.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
DEMO := $(VENV)/.demo-$(VERSION)
STAMP := $(VENV)/.dev-$(VERSION)
KAFKA := $(VENV)/kafka
HELM_VERSION := v3.18.6
HELM := $(VENV)/helm/$(HELM_VERSION)
# The repository has two distributions: the SDK's project is the root, the registry's is this folder.
REGISTRY := distributions/registry
PROJECTS := VERSION setup.cfg pyproject.toml $(REGISTRY)/setup.cfg $(REGISTRY)/setup.py $(REGISTRY)/requirements.txt
PROSE := README.md CONTRIBUTING.md SECURITY.md docs \
peerseal registry migrations client_service resource_service examples demo benchmarks tools tests

NOT_ALONE := not compose and not fuzz and not judge and not thorough and not brokers and not browser \
and not ha and not pooler and not languages and not chart and not observe
QUICK := $(NOT_ALONE) and not e2e and not slow

.DEFAULT_GOAL := help
.PHONY: help demo up login test quick oldest thorough fuzz judge vectors languages chart manifests kafka brokers pooler observe ha browser pictures coverage lint prose format docs dist bench scale image compose-test .env clean

help: ## this list
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO) ## the whole idea on real processes, in a minute: calls, orders, attacks, rotation, split view, revocation
	@$(BIN)/python -m demo

up: $(DEMO) ## registry, services, consumer and a broker on loopback until Ctrl-C, with HTTPie lines to try
	@$(BIN)/python -m demo.up

login: $(DEMO) ## a login in your browser: opaque token, order, event, invoice
	@$(BIN)/python -m demo.login

test: $(STAMP) ## every test that needs no container engine and no browser, but for the long runs: thorough, fuzz, judge, brokers, languages, chart, pooler, observe, ha
	$(BIN)/pytest -n $(TEST_WORKERS) -m "$(NOT_ALONE)"

quick: $(STAMP) ## the tests without processes, in seconds
	$(BIN)/pytest -n $(WORKERS) -m "$(QUICK)"

oldest: ## the quick tests of each interface with the oldest releases that setup.cfg allows, in an environment of their own
	@$(PYTHON) -m venv --clear $(VENV)-oldest
	@$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	@sed -En 's/^ *([A-Za-z][A-Za-z0-9_-]*)(\[[a-z]+\])?>=([0-9][A-Za-z0-9.]*).*/\1==\3/p' setup.cfg $(REGISTRY)/requirements.txt \
	>$(VENV)-oldest/bounds.txt
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)-oldest" $(VENV)-oldest/bin/uv pip install --quiet --resolution lowest-direct \
	--constraint $(VENV)-oldest/bounds.txt --editable '.[dev]' --editable $(REGISTRY)
	$(VENV)-oldest/bin/pytest -n $(WORKERS) -m "$(QUICK)" -k "not postgres" --ignore=tests/attacks --ignore=tests/faults $(TESTS)

thorough: $(STAMP) ## what takes long: real processes on PostgreSQL, keys rolled over under load
	$(BIN)/pytest -n $(WORKERS) -m "thorough and not brokers and not pooler and not compose and not dist"

fuzz: $(STAMP) ## generated input for every parser and route, and calls made from /openapi.json, on both databases
	$(BIN)/pytest -m fuzz -s

judge: $(STAMP) ## the ledger, checked by Go's checksum database, and witnesses, by torchwood (needs go)
	$(BIN)/pytest -m judge

vectors: $(STAMP) ## docs/vectors: test vectors for peers in any language, the same bytes in every run
	$(BIN)/python -m tests.vectors.make

languages: $(STAMP) ## the peers of examples/node, go and java: the vectors, and calls to and from ours (needs node, go, java, maven)
	$(BIN)/pytest -m languages

chart: $(STAMP) $(HELM) ## the Helm chart: linted, validated for Kubernetes, and its own commands run on PostgreSQL (needs go)
	$(BIN)/pytest -m chart tests/chart

manifests: $(STAMP) $(HELM) ## deploy/kubernetes, docs/reference/chart.md and the chart's settings, made from the chart and the registry (needs go)
	$(BIN)/python -m tools.chart

kafka: $(KAFKA)/.installed ## the jars of a real Apache Kafka, for `make brokers` (needs maven)

brokers: $(STAMP) kafka ## events on a real Apache Kafka and a real RabbitMQ, killed on the way (needs java, rabbitmq-server)
	$(BIN)/pytest -m brokers

ha: $(STAMP) ## a database that fails over under two nodes and ten peers; what each event costs (needs root for all of it)
	@tests/ha/install
	$(BIN)/pytest -m ha -s

pooler: $(STAMP) ## the storage and all that stands on it through a real PgBouncer in transaction mode (needs pgbouncer)
	$(BIN)/pytest -n $(WORKERS) -m pooler $(TESTS)

observe: $(STAMP) ## alerts, dashboard and metrics in a real Prometheus that scrapes registry and service (needs prometheus)
	$(BIN)/pytest -m observe

browser: $(STAMP) ## a login and the whole console in a real Chromium, with screenshots in build/screenshots (needs chromium, chromedriver, npm)
	$(BIN)/pytest -m browser

pictures: $(STAMP) ## docs/pictures: the console's pages, as the tests in Chromium see them (needs chromium, chromedriver, npm)
	$(BIN)/pytest -m browser tests/browser
	@mkdir -p docs/pictures
	@cp build/screenshots/docs/*.png docs/pictures/

coverage: $(STAMP) ## the tests of `make test`, with the lines and branches that none of them reaches
	$(BIN)/pytest -n $(WORKERS) -m "$(NOT_ALONE)" --cov --cov-report=term-missing:skip-covered

lint: $(STAMP) ## ruff, mypy --strict, the import contracts, spelling, code that nothing uses, and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/vulture
	@$(BIN)/python -m tools.prose $(PROSE)

prose: $(STAMP) ## docstrings, comments and pages in plain English: words, nouns, the length of sentences
	@$(BIN)/python -m tools.prose $(PROSE)

format: $(STAMP) ## what ruff can put right by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(STAMP) ## peerseal and peerseal-registry into dist/: sdists, and wheels built from them; each installed alone and run
	@rm -rf dist build *.egg-info $(REGISTRY)/build $(REGISTRY)/*.egg-info  # an sdist takes what an old egg-info lists
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/python -m build --outdir dist $(REGISTRY) >/dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents --package peerseal dist/peerseal-*.whl
	@# W004: Alembic's scripts have names that begin with a number. W009: the wheel has two top-level names.
	$(BIN)/check-wheel-contents --ignore W004,W009 --package registry --package migrations dist/peerseal_registry-*.whl
	$(BIN)/pytest -m dist

docs: $(STAMP) ## the documentation site into build/site: warnings are errors, links and headings are checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "built build/site/index.html"

bench: $(STAMP) ## the benchmarks beside other libraries, into benchmarks/results.json
	@$(BIN)/python -m benchmarks

scale: $(STAMP) ## a registry of a million keys on PostgreSQL, and 5,000 peers through nginx's cache (half an hour; SERVICES, PEERS)
	@$(BIN)/python -m benchmarks.scale --services $(SERVICES) --peers $(PEERS)

image: ## the registry's image, peerseal-registry:local; BUILD_OPTIONS are docker build's own
	docker build --target registry --tag peerseal-registry:local $(BUILD_OPTIONS) .

compose-test: $(STAMP) ## the registry's image, and the containers of docker-compose.yml: started, called, killed, taken down
	$(BIN)/pytest -m compose

.env: ## the secrets of docker-compose.yml, made at random for this checkout; those that are there stay
	@mkdir -p -m 700 secrets
	@for name in postgres_password registry_owner_password registry_app_password redis_password introspection_secret \
	client_operator_secret client_demo_password; do \
	test -s secrets/$$name || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > secrets/$$name; done
	@printf 'postgresql://peerseal_owner:%s@postgres/peerseal' "$$(cat secrets/registry_owner_password)" > secrets/registry_owner_url
	@printf 'postgresql://peerseal_app:%s@postgres/peerseal' "$$(cat secrets/registry_app_password)" > secrets/registry_database_url
	@printf 'requirepass %s\n' "$$(cat secrets/redis_password)" > secrets/redis_conf
	@printf 'redis://default:%s@redis/0' "$$(cat secrets/redis_password)" > secrets/redis_url
	@chmod 644 secrets/*
	@umask 077 && printf 'CLIENT_OPERATOR_SECRET=%s\nCLIENT_DEMO_PASSWORD=%s\n' \
	"$$(cat secrets/client_operator_secret)" "$$(cat secrets/client_demo_password)" > $@
	@echo "wrote .env and secrets/: docker compose up --build --wait"

clean: ## remove the virtual environment, caches and local state (not .env)
	rm -rf $(VENV) build dist *.egg-info $(REGISTRY)/build $(REGISTRY)/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(KAFKA)/.installed: tests/support/kafka/pom.xml | $(STAMP)
	@echo "fetching Apache Kafka into $(KAFKA) (once)"
	@rm -rf $(KAFKA)
	@mvn --quiet --batch-mode --file $< dependency:copy-dependencies -DoutputDirectory="$(CURDIR)/$(KAFKA)"
	@touch $@

$(HELM): | $(STAMP)
	@echo "building helm $(HELM_VERSION) into $(VENV)/helm (once)"
	@rm -rf $(VENV)/helm
	@PATH="$$PATH:/usr/local/go/bin" GOBIN="$(CURDIR)/$(VENV)/helm" go install helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)
	@touch $@

# What the demo needs, and nothing for tests.
$(DEMO): $(PROJECTS)
	$(call install,demo)
	@touch $@

# What tests, benchmarks and linters need; the demo's part is among it.
$(STAMP): $(PROJECTS)
	$(call install,dev)
	@touch $(DEMO) $@

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Peerseal needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian and Ubuntu: python3-venv)" >&2; exit 1; }
	@ls $(VENV)/.*-$(VERSION) >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing peerseal[$1] and peerseal-registry into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$1]' --editable $(REGISTRY)
endef
