"""`leaf-diffusion <command>`: one door to everything; a command's code is imported only when it is called."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from leaf_diffusion import __version__
from leaf_diffusion.command_line import did_you_mean, run_command

COMMANDS = {
    "evaluate": (
        "leaf_diffusion.eval.t2i_robustness:main",
        "attack prompts, generate images, measure, write the report",
    ),
    "attack": ("leaf_diffusion.eval.attack:main", "attack the prompts of a file and write the attack set"),
    "certify": (
        "leaf_diffusion.eval.certify:main",
        "prompts of which a defence undoes every allowed edit, so that no edit changes their images",
    ),
    "finetune": ("leaf_diffusion.cli.finetune:main", "make a text encoder robust (TextFARE with the LEAF attack)"),
    "finetune-image": ("leaf_diffusion.cli.finetune_image:main", "make an image tower robust (FARE)"),
    "finetune-both": ("leaf_diffusion.cli.finetune_both:main", "make both towers of a CLIP robust, together"),
    "textfare": ("leaf_diffusion.eval.textfare:main", "the TextFARE loss of text encoders, clean and attacked"),
    "zero-shot-text": (
        "leaf_diffusion.eval.zero_shot_text:main",
        "zero-shot text classification with the exact worst single edit, over k and over queries",
    ),
    "zero-shot-image": (
        "leaf_diffusion.eval.zero_shot_image:main",
        "zero-shot image classification under PGD and APGD",
    ),
    "both-domains": (
        "leaf_diffusion.eval.both_domains:main",
        "the paper's table: images and texts, clean and attacked, with robust towers and without",
    ),
    "exact-images": (
        "leaf_diffusion.eval.exact_images:main",
        "the prompts whose image is right under every allowed edit: all are drawn, none is searched for",
    ),
    "retrieve": ("leaf_diffusion.eval.retrieval:main", "text-to-image retrieval, clean, attacked and targeted"),
    "invert": ("leaf_diffusion.eval.inversion:main", "read captions back from their embeddings"),
    "ablate": ("leaf_diffusion.eval.ablation:main", "what rho, the constraint and the attack buy in the finetuning"),
    "translate-token": (
        "leaf_diffusion.cli.translate_token:main",
        "a learnt token (textual inversion) of one text encoder, translated for another",
    ),
    "status": ("leaf_diffusion.cli.status:main", "how far a run is, who works on it, how long its stage takes"),
    "swap-cost": ("leaf_diffusion.eval.swap_cost:main", "what a robust encoder costs on clean prompts"),
    "report": ("leaf_diffusion.cli.report:main", "write the report of a run folder again"),
    "leaderboard": ("leaf_diffusion.cli.leaderboard:main", "the encoders of several runs in one page to sort"),
    "convert": ("leaf_diffusion.cli.convert:main", "convert a CLIP between transformers and open_clip"),
    "export": (
        "leaf_diffusion.cli.export:main",
        "write a text encoder, or a checkpoint around it, as the single file that ComfyUI loads",
    ),
    "doctor": ("leaf_diffusion.cli.doctor:main", "versions, devices, files: what works here, what cannot and why"),
    "world": ("leaf_diffusion.cli.world:main", "train or show the embedded world"),
}


GROUPS = {
    "attack prompts and draw them": ("evaluate", "attack", "exact-images", "certify", "swap-cost"),
    "make encoders robust": ("finetune", "finetune-image", "finetune-both", "translate-token"),
    "measure encoders without drawing": (
        "textfare", "zero-shot-text", "zero-shot-image", "both-domains", "retrieve", "invert", "ablate",
    ),
    "runs and files": ("status", "report", "leaderboard", "convert", "export"),
    "this installation": ("doctor", "world"),
}  # fmt: skip
"""The commands as the help shows them."""


def usage() -> str:
    """The help text."""
    lines = ["usage: leaf-diffusion <command> [options]", ""]
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<16}{COMMANDS[name][1]}" for name in names), ""]
    return "\n".join([*lines, "`leaf-diffusion <command> --help` lists its options."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error that the user can mend is one line and status 2."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help", "help"):
        return run_command("help", _usage, words)
    command, *rest = words
    if command in ("-V", "--version"):
        return run_command("version", _version)
    if command not in COMMANDS:
        close = did_you_mean(command, COMMANDS) or ";"
        print(
            f"leaf-diffusion: there is no command {command!r}{close} there are: {', '.join(COMMANDS)}", file=sys.stderr
        )
        return 2
    return run_command(command, lambda words: _function(COMMANDS[command][0])(words), rest)


def _usage(words: Sequence[str]) -> int:
    print(usage())
    return 0 if words else 2


def _version(words: Sequence[str]) -> int:
    print(f"leaf-diffusion {__version__}")
    return 0


def _function(target: str) -> Callable[[Sequence[str]], int]:
    """What "module:function" names; imports it, so that a fault or Ctrl-C while loading is the command's."""
    module, function = target.split(":")
    found: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return found


if __name__ == "__main__":
    sys.exit(main())
