"""``contrl merge``: an adapter added to its base, written as a whole model."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Add an adapter to the weights of its base and write the whole model.

The folder is written whole or not at all. Nothing is sent anywhere unless --push_to_hub is given.
"""
EPILOG = """examples:
  contrl merge --adapter_model_name runs/dpo --output_name models/dpo
  contrl merge --base_model_name gpt2-medium --adapter_model_name saved/dpo --output_name saved/merged --dtype bfloat16
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--adapter_model_name", required=True, metavar="FOLDER", help="an adapter, run, stage or checkpoint folder"
    )
    parser.add_argument(
        "--base_model_name", metavar="MODEL", help="what it is put on (default: what the adapter names)"
    )
    parser.add_argument("--output_name", required=True, metavar="FOLDER", help="the folder that is written, exactly")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the merged weights (auto: float32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what the output folder holds")
    parser.add_argument("--push_to_hub", metavar="ID", help="also send the model to this name on the hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the base")


def command(options: argparse.Namespace) -> int:
    """Merge, save, and send only when asked."""
    from contrl.errors import UserError

    output = Path(options.output_name)
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file", fix="give another --output_name")
    if output.exists() and any(output.iterdir()) and not options.overwrite:
        raise UserError(
            f"{output} is not empty", fix="give another --output_name, or --overwrite to replace what it holds"
        )

    from contrl.cli.console import quiet_libraries, say
    from contrl.engine.checkpoint import whole_folder
    from contrl.errors import EnvironmentFault
    from contrl.models.card import write_card
    from contrl.models.merge import merge

    quiet_libraries()
    policy = merge(
        options.adapter_model_name,
        options.base_model_name,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    try:
        with whole_folder(output.absolute()) as staging:
            policy.model.save_pretrained(staging)
            policy.tokenizer.save_pretrained(staging)
            write_card(staging, _facts(options, policy.source))
    except OSError as error:
        raise EnvironmentFault(f"cannot write to {output}: {error.strerror}", fix="another --output_name") from error
    say(f"{policy.source}: {output}")
    if options.push_to_hub:
        _push(policy, options.push_to_hub)
        say(f"sent to {options.push_to_hub} on the hub")
    return 0


def _facts(options: argparse.Namespace, source: str) -> dict[str, object]:
    command = ["contrl merge", f"--adapter_model_name {options.adapter_model_name}"]
    if options.base_model_name:
        command.append(f"--base_model_name {options.base_model_name}")
    command.append(f"--output_name {options.output_name} --dtype {options.dtype}")
    return {
        "title": Path(options.output_name).name,
        "base": options.base_model_name,
        "method": source,
        "tags": ["merged"],
        "command": command,
    }


def _push(policy: object, name: str) -> None:
    from typing import Any, cast

    from contrl.errors import EnvironmentFault

    made = cast(Any, policy)
    try:
        made.model.push_to_hub(name)
        made.tokenizer.push_to_hub(name)
    except Exception as error:  # whatever the hub's client raises: no network, no login, no right
        raise EnvironmentFault(
            f"the model could not be sent to {name}",
            why=(str(error).strip().splitlines() or [type(error).__name__])[0],
            fix="log in with `hf auth login` and check the name; the folder is written and valid",
        ) from error
