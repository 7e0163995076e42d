.DEFAULT_GOAL := help
.PHONY: help bootstrap quickstart test verify verify-lora verify-critic soak lint format docs site clean

# Left there by scripts/bootstrap.sh.
UV := .cache/bin/uv
RUN := $(UV) run --no-sync

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 16

bootstrap: ## make .venv as uv.lock describes it
	scripts/bootstrap.sh

# Again and again: earlier runs are moved aside.
quickstart: bootstrap ## prepare a small task, tune on it, then train with rewards; CPU will do
	$(RUN) python examples/quickstart/prepare.py
	$(RUN) pentad train examples/quickstart/sft.yaml experiment.overwrite=true
	$(RUN) pentad train examples/quickstart.yaml experiment.overwrite=true

# Tests that run at a time.
JOBS := 2

test: ## lint, and run all tests
	scripts/bootstrap.sh --tests
	$(MAKE) lint
	$(RUN) pytest -n $(JOBS) --no-loadscope-reorder

FAMILIES := llama_tied mistral qwen2 qwen3 qwen3_moe qwen2_moe mixtral qwen3_moe_dense qwen2_moe_dense

verify: bootstrap ## compare all 470 small layouts of all families with one process; twenty minutes on two cores
	set -e; for family in $(FAMILIES); do $(RUN) pentad verify layouts $$family --max-ranks 8; done

verify-lora: bootstrap ## the same with adapters beside every module
	set -e; for family in $(FAMILIES); do $(RUN) pentad verify layouts $$family --max-ranks 8 --lora 8; done

verify-critic: bootstrap ## the same of critics: values instead of log-probs
	set -e; for family in $(FAMILIES); do $(RUN) pentad verify layouts $$family --max-ranks 8 --critic; done

KILLS := 60

soak: ## kill runs in all their phases, go on, and compare with runs that nobody killed; half an hour on two cores
	scripts/bootstrap.sh --tests
	$(RUN) pytest -m long
	$(RUN) python tests/soak/soak.py --kills $(KILLS)
	$(RUN) python tests/soak/soak.py --kills 10 --experts 4 --allocation 'hf:d1+megatron:(attn:d2|ffn:d1e2)' --out runs/soak-mixture

lint: bootstrap ## check style, types and floors
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) ty check src
	$(RUN) lint-imports

format: bootstrap ## put the style right where that can be done by machine
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

docs: bootstrap ## write docs/configuration.md and docs/metrics.md from the code
	$(RUN) pentad config --keys --markdown > docs/configuration.md
	$(RUN) pentad config --metrics --markdown > docs/metrics.md

# An environment of its own: docs/requirements.txt pins it, and uv.lock is not concerned.
site: bootstrap ## build the documentation as a site, in site/; any warning is an error
	NO_MKDOCS_2_WARNING=1 $(UV) tool run --python .venv/bin/python --with-requirements docs/requirements.txt \
	    --from mkdocs mkdocs build --strict --clean

clean: ## remove caches; keeps .venv and runs
	rm -rf .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist site
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
