"""A project in one file (a "road"): a list of steps, each a command with its options, run one after the other.

    steps:
      - captions: {seeds: seeds.txt, output: captions, writer: grammar}
      - embed: {data: captions, output: embedded, encoder: sandbox}

The options of each finished step, and the state of its inputs, are recorded in the current folder. So a second run
skips finished steps and continues where the first one stopped.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from unicorn_hf.cli.command import COMMANDS, option_words, read_yaml, shown_line
from unicorn_hf.cli.train import find_recipe
from unicorn_hf.data.data_files import is_hub_id
from unicorn_hf.errors import InputError

DONE, TO_DO = "done", "to do"
_SOME_ROWS_FAILED = 3
_TRAIN = ("train pretrain", "train finetune", "train prefer")
_NO_STEPS = ("demo", "app", "serve")  # commands whose output no other step reads
# The options of each step that name what it reads: files, folders or Hub ids.
_INPUTS = {
    "captions": ("seeds", "prompt_dir", "word_list"),
    "instructions": ("captions", "prompt_dir"),
    "preferences": ("captions", "prompt_dir"),
    "retry-failed": ("output",),
    "report captions": ("captions",),
    "embed": ("data", "image_root"),
    "transfer fit": ("moments", "text", "image"),
    "transfer apply": ("data", "transfer"),
    "transfer moments": ("data",),
    "gap": ("text", "image", "transfer"),
    "publish": ("pretrain", "instruction", "preference", "transfer", "steps"),
    "import": ("source", "embeddings"),
    "train pretrain": ("dataset", "model_name_or_path"),
    "train finetune": ("dataset", "model_name_or_path"),
    "train prefer": ("dataset", "model_name_or_path"),
    "evaluate": ("model", "data", "transfer"),
    "generate": ("model", "transfer"),
    "convert-checkpoint": ("source",),
    "convert-tower": (),
    "attach-tower": ("model",),
}


@dataclasses.dataclass
class Step:
    """One command with its options, by their names in a YAML."""

    command: str
    options: dict

    def check(self) -> None:
        """Raise `InputError` if the command or an option is not allowed; recipes check the options of training."""
        known = [*(name for name in COMMANDS if name not in _NO_STEPS), *_TRAIN]
        if self.command not in known:
            raise InputError(f"there is no step {self.command[:100]!r}; expected one of {', '.join(known)}")
        if self.command not in _TRAIN:
            COMMANDS[self.command].read(self.options)
            return
        if "output_dir" not in self.options:
            raise InputError(f"{self.command}: output_dir is missing; name the folder of the model")
        for name in ("config", "accelerate_config"):
            if name in self.options:
                find_recipe(Path(str(self.options[name])))

    @property
    def words(self) -> list[str]:
        """The command line as a list of words."""
        if self.command in _TRAIN:
            return [*self.command.split(), *option_words(self.options)]
        return COMMANDS[self.command].words(self.options)

    @property
    def outputs(self) -> list[Path]:
        """The paths that it writes."""
        names = ("output_dir",) if self.command in _TRAIN else ("output", "moved", "json")
        return [Path(self.options[name]) for name in names if self.options.get(name) is not None]

    @property
    def inputs(self) -> list[str]:
        """The files, folders and Hub ids that it reads."""
        names = _INPUTS[self.command]
        if self.command == "train pretrain" and "/" not in str(self.options.get("model_name_or_path")):
            names = ("dataset",)  # the language model may be on the Hub without a slash, such as gpt2
        values = [self.options.get(name) for name in names]
        return [str(each) for value in values for each in (value if isinstance(value, list) else [value]) if each]

    def fingerprint(self) -> str:
        """A hash of the options, and of the names, sizes and modification times of the files that they name."""
        digest = hashlib.sha256(json.dumps([self.command, self.options], sort_keys=True, default=str).encode())
        outputs = {path.absolute() for path in self.outputs}
        for value in self.options.values():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and Path(text).absolute() not in outputs:
                    for line in _files_of(Path(text)):
                        digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()


class Road:
    """The steps of a project and the record of finished ones."""

    def __init__(self, name: str, steps: list[Step]):
        self.steps = steps
        self.record_file = Path(f".{name}.done.json")

    @classmethod
    def read(cls, path: Path) -> "Road":
        """Read and check the steps of a YAML file; its paths are relative to the current folder.

        Raises:
            InputError: the file cannot be read, or a step or an option in it is not allowed.
        """
        road = read_yaml(path)
        if set(road) != {"steps"} or not isinstance(road["steps"], list) or not road["steps"]:
            raise InputError(f"{path}: expected a list under 'steps', and nothing else")
        steps = []
        for number, item in enumerate(road["steps"], 1):
            if not isinstance(item, dict) or len(item) != 1:
                raise InputError(f"{path}: step {number} is {str(item)[:100]!r}; expected COMMAND: {{OPTION: VALUE}}")
            ((command, options),) = item.items()
            if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
                raise InputError(f"{path}: step {number} ({command}): expected options, each as NAME: VALUE")
            steps.append(Step(str(command), {name.replace("-", "_"): value for name, value in options.items()}))
            try:
                steps[-1].check()
            except InputError as error:
                raise InputError(f"{path}: step {number} ({command}): {error}") from None
        return cls(Path(path).stem, steps)

    def plan(self) -> str:
        """The steps as command lines, each with its state."""
        record, lines, remade = self.record(), [], False
        for number, step in enumerate(self.steps, 1):
            # If a step runs again, later steps may get other inputs.
            state = DONE if not remade and self.is_done(step, record) else TO_DO
            remade = remade or state == TO_DO
            lines.append(f"{number:3} {state:6} {shown_line(step.words)}")
        return "\n".join(lines)

    def missing(self) -> list[str]:
        """A sentence for each input that is not here, and that no earlier step makes."""
        record, made, sentences = self.record(), [], []
        for number, step in enumerate(self.steps, 1):
            if not self.is_done(step, record):
                sentences += [
                    f"step {number} ({step.command}): {name} is missing: it is not here, and no earlier step makes it"
                    for name in step.inputs
                    if not _will_be_there(name, made)
                ]
            made += [Path(os.path.abspath(path)) for path in step.outputs]
        return sentences

    def run(self) -> int:
        """Run the steps that are not done, and return the exit status.

        A failing step ends the run with its status. A step in which only some rows fail (status 3) does not: the run
        continues, and returns that status at the end.
        """
        status = 0
        for number, step in enumerate(self.steps, 1):
            if self.is_done(step, self.record()):
                continue
            print(f"--- step {number} of {len(self.steps)}: {step.command}", flush=True)
            fingerprint, started = step.fingerprint(), time.monotonic()
            # Its last run no longer counts: training writes into its output, which exists from the start.
            self.write_record(step, None)
            ended = subprocess.run([sys.executable, "-m", "unicorn_hf", *step.words]).returncode
            if ended not in (0, _SOME_ROWS_FAILED):
                print(f"unicorn-hf: step {number} ({step.command}) ended with status {ended}", file=sys.stderr)
                return ended if ended > 0 else 128 - ended  # negative: ended by a signal
            status = status or ended
            self.write_record(step, fingerprint)
            print(f"--- step {number} took {time.monotonic() - started:.0f} s", flush=True)
        return status

    def is_done(self, step: Step, record: dict) -> bool:
        """Whether a step was run with these options on these inputs, and its outputs exist.

        Raises:
            InputError: the outputs exist, but were made with other options or inputs.
        """
        outputs = step.outputs
        key = _key(step)
        if not outputs or not all(path.exists() for path in outputs):
            return False
        if key in record and record[key] != step.fingerprint():
            raise InputError(
                f"{outputs[0]}: was made with other options or inputs than `{step.command}` has now; remove it, or "
                "name another output"
            )
        return key in record

    def record(self) -> dict:
        """output -> fingerprint of the step that wrote it."""
        try:
            record = json.loads(self.record_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.record_file}: is damaged; remove it, and what the steps wrote") from error
        if not isinstance(record, dict):
            raise InputError(f"{self.record_file}: is damaged; remove it, and what the steps wrote")
        return record

    def write_record(self, step: Step, fingerprint: str | None) -> None:
        from unicorn_hf.data.staging import write_json

        record = {key: value for key, value in self.record().items() if key != _key(step)}
        write_json(record | ({} if fingerprint is None else {_key(step): fingerprint}), self.record_file)


def _will_be_there(name: str, made: list[Path]) -> bool:
    """Whether a path exists or lies in one of `made`, or a name is that of a dataset or a model on the Hub."""
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if path.exists() or not {path, *path.parents}.isdisjoint(made):
        return True
    return is_hub_id(name) and path.parent not in [other.parent for other in made]


def _key(step: Step) -> str:
    return f"{step.command}: {', '.join(map(str, step.outputs))}"


def _files_of(path: Path) -> list[str]:
    """Name, size and modification time of a file, or of each file in a folder; empty if it is not a path."""
    try:
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        else:
            return []
        return [f"{file}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n" for file in files]
    except OSError:  # a name that no file can have
        return []
