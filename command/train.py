"""`flm train` and `flm distill`: a model from a recipe.

Recipes are read before torch is imported, so that their mistakes show at once.
"""

import argparse

from trainers.recipe import Recipe, load_recipe


def add(commands) -> None:
    """Add the two subcommands to those of the parser."""
    for name, what, build in (
        ("train", "train a model from a recipe", "build_trainer"),
        ("distill", "distil a trained flow into its map, which writes in one step", "build_distiller"),
    ):
        command = commands.add_parser(name, help=what, description=what.capitalize() + ".")
        command.add_argument("recipe", help="a YAML file, such as recipes/english-small.yaml")
        add_run(command)
        command.set_defaults(run=run, build=build)


def add_run(command: argparse.ArgumentParser) -> None:
    """Add the arguments that every subcommand that trains has: overrides of the recipe, and `--resume`."""
    command.add_argument("overrides", nargs="*", metavar="section.name=value", help="such as training.max_steps=100")
    command.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint, if there is one")


def run(options: argparse.Namespace) -> int:
    return trained(load_recipe(options.recipe, options.overrides), options.build, options.resume)


def trained(recipe: Recipe, build: str, resume: bool) -> int:
    """Train what a recipe describes; `build` names the function of `trainers.train` that puts it together."""
    from trainers import train

    trainer = getattr(train, build)(recipe)
    train.run_training(trainer, resume)
    print(f"The model is in {trainer.args.output_dir}.")
    return 0
