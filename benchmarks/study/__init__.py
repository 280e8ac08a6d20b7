"""The study of results/plan.md: what `map_study.py` carries out and reports."""
