"""`unicorn-hf publish`."""

from typing import Annotated

from unicorn_hf.cli import app
from unicorn_hf.cli.command import Flag, Output, command, print_next
from unicorn_hf.dataset_scripts.config import PublishAndPushConfig


@command(
    app,
    "publish",
    examples=[
        "unicorn-hf publish --pretrain aligned-captions --instruction conversations -o dataset --license apache-2.0",
        "unicorn-hf publish --pretrain aligned-captions -o dataset --push-to-hub ORG/NAME --private",
    ],
)
def publish(
    pretrain: Annotated[str, Flag("A dataset with the columns id, caption, image_embeds.")],
    output: Output,
    config: PublishAndPushConfig,
    instruction: Annotated[str | None, Flag("A dataset with the columns id, caption, task, messages.")] = None,
    preference: Annotated[str | None, Flag("A dataset with the columns id, caption, prompt, chosen, rejected.")] = None,
):
    """Write captions, conversations and preference pairs in the Hub's layout, for `load_dataset`, and push them."""
    import unicorn_hf

    folder = unicorn_hf.publish(pretrain, instruction, output, preference=preference, config=config)
    print(folder)
    if config.push_to_hub:
        private = True if config.private else None
        to = {"private": private, "revision": config.revision, "create_pr": config.create_pr}
        print(unicorn_hf.push_to_hub(folder, config.push_to_hub, **to))
    if preference and not instruction:
        stage = "prefer --config prefer/qwen2.5-0.5b-lora.yaml --model_name_or_path stage-2"
        print_next(f"unicorn-hf train {stage} --dataset {folder} --output_dir stage-3")
    else:
        config_file = "pretrain/qwen2.5-0.5b.yaml"
        print_next(f"unicorn-hf train pretrain --config {config_file} --dataset {folder} --output_dir stage-1")
