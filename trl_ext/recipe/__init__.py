"""What the recipes share: arguments, the task (model, prompts, rewards), and the report at the end."""

from trl_ext.recipe.arguments import RecipeArguments, one_line_errors, parse_recipe_args
from trl_ext.recipe.report import RunReport
from trl_ext.recipe.task import Task, load_demonstrations, load_task

__all__ = [
    "RecipeArguments",
    "RunReport",
    "Task",
    "load_demonstrations",
    "load_task",
    "one_line_errors",
    "parse_recipe_args",
]
