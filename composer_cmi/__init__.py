"""Conditional mutual information for fine-tuning and distilling classifiers with MosaicML Composer."""
