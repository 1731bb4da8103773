"""The question-aware budget on shapes over photographs."""
