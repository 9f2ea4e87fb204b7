"""Recipes: YAML text to checked targets, with a position for every mistake. Imports nothing that a recipe names."""

from automodel.recipe.recipe import Recipe, load_recipe
from automodel.recipe.signature import Parameter, Signature, read_signature
from automodel.recipe.source import Problem, RecipeError
from automodel.recipe.target import Target

__all__ = ["Parameter", "Problem", "Recipe", "RecipeError", "Signature", "Target", "load_recipe", "read_signature"]
