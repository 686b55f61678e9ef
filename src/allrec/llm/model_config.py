"""Which language model, and in what precision."""

from typing import Literal

from pydantic import Field

from allrec.errors import Config
from allrec.llm.packaged import DEFAULT, PACKAGED


class LanguageModelConfig(Config):
    """Which language model, and in what precision."""

    name: str = Field(
        DEFAULT,
        min_length=1,
        description="A folder, a GGUF file, a name on the Hugging Face hub, or a packaged one: " + ", ".join(PACKAGED),
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub; none means its main branch.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of the weights; auto is bfloat16 where a trial shows that it is faster, as on "
        "accelerators and CPUs that have instructions for it, else float32.",
    )
    weights: Literal["whole", "8bit", "4bit"] = Field(
        "whole",
        description="Bits a weight of the layers, by bitsandbytes: less memory; needs CUDA and the extra quant.",
    )
    is_compiled: bool = Field(False, description="Layers are compiled by torch; wants a C++ compiler on a CPU.")
    is_checkpointed: bool = Field(
        False, description="Layers keep only their inputs for the gradient, and are run twice: less memory."
    )
    is_sharded: bool = Field(
        False,
        description="Workers that train together hold a part of each layer, for a model that does not fit; slower.",
    )
