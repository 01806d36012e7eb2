"""The namespace of the ops. Nothing else in the package spells it.

kernel-builder generates a file of this name and content for a build for the Hugging Face Hub, with a namespace of its
own, so that several builds can be loaded side by side (docs/integrations/hub.md).
"""

import torch

ops = torch.ops.vtkernels


def add_op_namespace_prefix(op_name: str) -> str:
    return f"vtkernels::{op_name}"
