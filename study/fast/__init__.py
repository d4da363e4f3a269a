"""Steps that make the updates of study/update.py in less time; study/steps.py chooses among them."""
