"""The public names, for type checkers: at run time each is imported when it is first used."""

from unicorn_hf.dataset_scripts.embedding_lookup import EmbeddingLookup as EmbeddingLookup
from unicorn_hf.dataset_scripts.publishing import import_released as import_released
from unicorn_hf.dataset_scripts.publishing import publish as publish
from unicorn_hf.dataset_scripts.unicorn import UnicornBuilder as UnicornBuilder
from unicorn_hf.dataset_scripts.unicorn import load_unicorn as load_unicorn
from unicorn_hf.embedding.config import EmbedConfig as EmbedConfig
from unicorn_hf.embedding.encoders import load_encoder as load_encoder
from unicorn_hf.embedding.step import embed as embed
from unicorn_hf.errors import InputError as InputError
from unicorn_hf.errors import MissingExtraError as MissingExtraError
from unicorn_hf.evaluation.config import EvaluateConfig as EvaluateConfig
from unicorn_hf.evaluation.evaluation import evaluate as evaluate
from unicorn_hf.hub import push_to_hub as push_to_hub
from unicorn_hf.modeling.configuration_unicorn import UnicornConfig as UnicornConfig
from unicorn_hf.modeling.modeling_unicorn import UnicornForConditionalGeneration as UnicornForConditionalGeneration
from unicorn_hf.modeling.modeling_unicorn import UnicornModel as UnicornModel
from unicorn_hf.modeling.processing_unicorn import UnicornProcessor as UnicornProcessor
from unicorn_hf.synthesis.batch_writer import BatchWriter as BatchWriter
from unicorn_hf.synthesis.caption_filters import CaptionFilters as CaptionFilters
from unicorn_hf.synthesis.captions import write_captions as write_captions
from unicorn_hf.synthesis.chat_writer import ChatWriter as ChatWriter
from unicorn_hf.synthesis.config import CaptionConfig as CaptionConfig
from unicorn_hf.synthesis.config import InstructionConfig as InstructionConfig
from unicorn_hf.synthesis.config import PreferenceConfig as PreferenceConfig
from unicorn_hf.synthesis.grammar import GrammarWriter as GrammarWriter
from unicorn_hf.synthesis.instructions import write_instructions as write_instructions
from unicorn_hf.synthesis.job import retry_failed as retry_failed
from unicorn_hf.synthesis.preferences import write_preferences as write_preferences
from unicorn_hf.synthesis.report import report_captions as report_captions
from unicorn_hf.synthesis.transformers_writer import TransformersWriter as TransformersWriter
from unicorn_hf.synthesis.usage import Prices as Prices
from unicorn_hf.transfer.gap import measure_gap as measure_gap
from unicorn_hf.transfer.mean_shift import MeanShift as MeanShift
from unicorn_hf.transfer.modality_transfer import ModalityTransfer as ModalityTransfer
from unicorn_hf.transfer.moments import Moments as Moments
from unicorn_hf.transfer.realign import ReAlign as ReAlign

__version__: str
