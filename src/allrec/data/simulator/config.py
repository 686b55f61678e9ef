"""The options of the simulated marketplace."""

from typing import Self

from pydantic import Field, model_validator

from allrec.errors import Config


class SimulationConfig(Config):
    """How large the simulated marketplace is, and how its customers behave."""

    num_users: int = Field(2_000, ge=1, description="Users.")
    num_items: int = Field(1_000, ge=8, description="Items in the catalogue.")
    mean_interactions: float = Field(10.0, ge=1, description="Interactions a user, on average (log-normal).")
    max_interactions: int = Field(50, ge=3, description="Most interactions of a user.")
    brands_per_department: int = Field(6, ge=1, description="Brands in each of the eight departments.")
    kinds_per_user: int = Field(4, ge=1, description="Kinds that a user has a taste for.")
    taste_concentration: float = Field(0.7, gt=0, description="Dirichlet parameter of a user's taste for those kinds.")
    brand_concentration: float = Field(0.5, gt=0, description="Dirichlet parameter of a user's taste for two brands.")
    follow_share: float = Field(0.35, ge=0, le=1, description="How often the last kind decides the next one.")
    loyalty: float = Field(0.6, ge=0, le=1, description="How often a favourite brand of the department is asked for.")
    repeat_share: float = Field(0.12, ge=0, le=1, description="How often an item of the history is bought again.")
    repeat_last_share: float = Field(0.7, ge=0, le=1, description="How often a repeat is of the very last item.")
    popularity_exponent: float = Field(0.8, ge=0, description="Popularity falls with rank to this power.")
    new_share: float = Field(0.1, ge=0, le=1, description="Items on sale in the last two weeks alone.")
    unsold_share: float = Field(0.05, ge=0, le=1, description="Items that nobody ever buys.")
    undescribed_share: float = Field(0.1, ge=0, le=1, description="Items without a description.")
    seed: int = Field(0, ge=0, description="Fixes the whole marketplace.")

    @model_validator(mode="after")
    def _check_cold(self) -> Self:
        if self.new_share + self.unsold_share > 1:
            raise ValueError(
                f"new_share {self.new_share} and unsold_share {self.unsold_share} are more than all items; lower one."
            )
        return self
