"""The study of results/plan.md, which `map_study.py` carries out and reports."""
