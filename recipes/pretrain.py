"""Stage 1: train the projector on captions and their synthetic image vectors; the language model stays frozen.

accelerate launch recipes/pretrain.py --config recipes/demo/pretrain.yaml \
    --model_name_or_path LANGUAGE_MODEL --dataset DATASET --output_dir OUTPUT
"""

from functools import partial

from transformers import AutoTokenizer, set_seed
from trl import ModelConfig, SFTConfig
from unicorn_hf.modeling import UnicornForConditionalGeneration, UnicornProcessor

from unicorn_hf.errors import one_sentence_errors
from unicorn_hf.training import (
    Mixture,
    PretrainArguments,
    UnicornCollator,
    UnicornTrainer,
    check_options,
    check_trackers,
    freeze_all_but_projector,
    is_padding_free,
    loading,
    parse_options,
    set_released_prompt,
    set_tokenizer_options,
    standardize_image_embeds,
    stop_at_the_end_of_a_turn,
    tokenize_captions,
)


def main(data_args: PretrainArguments, training_args: SFTConfig, model_args: ModelConfig) -> None:
    # Data
    check_options(data_args, training_args, model_args)
    check_trackers(training_args.report_to)
    data = Mixture.read(data_args)
    data.check_vectors()

    # Model
    set_seed(training_args.seed)  # the projector is initialized here, before the trainer sets the seed
    hub = {"revision": model_args.model_revision, "trust_remote_code": training_args.trust_remote_code}
    with loading(model_args.model_name_or_path, model_args.model_revision):
        tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, **hub)
        model = UnicornForConditionalGeneration.from_text_pretrained(
            model_args.model_name_or_path,
            tokenizer=tokenizer,
            embed_dim=data.embed_dim,
            num_image_tokens=data_args.num_image_tokens,
            projector_type=data_args.projector_type,
            projector_expand=data_args.projector_expand,
            normalize_image_embeds=data_args.normalize_image_embeds,
            image_encoder=data.image_encoder,
            transfer=data.transfer,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            **hub,
        )
    processor = UnicornProcessor(
        tokenizer,
        num_image_tokens=model.config.num_image_tokens,
        embed_dim=model.config.embed_dim,
        image_encoder=model.config.image_encoder,
    )
    set_released_prompt(processor, model, data_args.version)
    set_tokenizer_options(processor, training_args)
    freeze_all_but_projector(model)

    # Training
    tokenize = partial(tokenize_captions, learn=data_args.learn, overlong=data_args.overlong)
    tokens = data.tokenize(tokenize, processor, data_args, training_args)
    stop_at_the_end_of_a_turn(model, processor)
    if data_args.standardize_image_embeds:
        standardize_image_embeds(model, *data.datasets)
    training_args.remove_unused_columns = False
    training_args.router_aux_loss_coef = 0.0  # the model returns nothing of its experts' router
    training_args.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = UnicornTrainer(
        model=model,
        args=training_args,
        data_args=data_args,
        train_dataset=tokens,
        data_collator=UnicornCollator(
            processor,
            padding_free=is_padding_free(model, data_args.batching),
            pad_to_multiple_of=training_args.pad_to_multiple_of,
        ),
        processing_class=processor,
    )
    if training_args.max_steps == 0:
        trainer.dry_run()
        return
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    # Saving
    trainer.save_model(training_args.output_dir)
    trainer.create_model_card()


if __name__ == "__main__":
    with one_sentence_errors():
        main(*parse_options(PretrainArguments))
