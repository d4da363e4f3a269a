# make demo: from a clean clone to a trained model, its figure and its scores.
# make paper: the runs of the paper into results/, its figures 1 to 6 and its tables 2 to 7.
# make paper-small: the same without the MLT.
# make test: the tests. make gpu: the GPU tests; then each step of three models is compared and timed.

PYTHON ?= python3
VENV = .venv
IN_VENV = $(VENV)/bin/python
DATASETS = as_math facts_char both_math_and_facts
TEXT_CODE = $(addprefix study/,tasks.py dataset.py settings.py files.py)
# On a Mac the CPU: the C step is made for small models, and nothing has been tried on a Mac's GPU.
SMALL_ON = $(if $(filter Darwin,$(shell uname -s)),--device=cpu)

define FIGURES
$(IN_VENV) plot_all_models.py --root_dir=results
$(IN_VENV) plot_all_models.py --root_dir=results --suffix=_wd
$(IN_VENV) tabulate_all_models.py --root_dir=results
$(IN_VENV) tabulate_all_models.py --root_dir=results --suffix=_wd
endef

.PHONY: demo paper paper-small test gpu data clean

demo: $(VENV)/ready data
	@# A demo that was interrupted goes on where it stopped.
	$(IN_VENV) train_with_eval.py config/train_math_mini_14.py $(SMALL_ON) \
		$(if $(wildcard math_mini_14/run.json),--init_from=resume)
	$(IN_VENV) plot_results.py --model_folder math_mini_14
	$(IN_VENV) eval_as_math.py --out_dir=math_mini_14 $(SMALL_ON)

paper: $(VENV)/ready
	$(IN_VENV) run_experiment.py experiments/paper.py $(SMALL_ON)
	$(IN_VENV) run_experiment.py experiments/mlt.py
	$(FIGURES)

paper-small: $(VENV)/ready
	$(IN_VENV) run_experiment.py experiments/paper.py $(SMALL_ON)
	$(FIGURES)

test: $(VENV)/ready
	$(IN_VENV) -m pytest -q -n auto

gpu: $(VENV)/ready data
	$(IN_VENV) check_gpu.py

data: $(DATASETS:%=data/%/meta.pkl)

data/%/meta.pkl: data/%/prepare.py $(TEXT_CODE) | $(VENV)/ready
	$(IN_VENV) $<

$(VENV)/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q -r requirements.txt
	@touch $@

clean:
	rm -rf $(VENV) data/*/*.bin data/*/meta.pkl data/*/train.txt
