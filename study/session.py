"""Leave the terminal's session on import.

run_experiment.py has the process that forks its runs import this first. Signals for all processes of a
terminal then reach run_experiment.py alone, which stops the runs.
"""

import os

os.setsid()
