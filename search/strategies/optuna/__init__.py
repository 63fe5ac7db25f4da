"""Optuna's samplers as strategies. The only package that imports Optuna."""

from search.strategies.optuna.gp import GpStrategy
from search.strategies.optuna.nsga2 import Nsga2Strategy, population_size
from search.strategies.optuna.study import OptunaStrategy, startup_candidates
from search.strategies.optuna.tpe import TpeStrategy

__all__ = ["GpStrategy", "Nsga2Strategy", "OptunaStrategy", "TpeStrategy", "population_size", "startup_candidates"]
