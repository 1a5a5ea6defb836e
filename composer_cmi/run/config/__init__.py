"""What a run's YAML file may say, and how it is read and checked."""

from composer_cmi.errors import ConfigError
from composer_cmi.run.config.loading import arm_configs, build_config, deep_merge, load_config
from composer_cmi.run.config.schema import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SchedulerConfig,
    TrainConfig,
)

__all__ = [
    'CheckpointConfig',
    'ConfigError',
    'DataConfig',
    'ModelConfig',
    'OptimizerConfig',
    'RunConfig',
    'SchedulerConfig',
    'TrainConfig',
    'arm_configs',
    'build_config',
    'deep_merge',
    'load_config',
]
