"""A3PRVR: action-and-object aware alignment for partially relevant video retrieval."""
