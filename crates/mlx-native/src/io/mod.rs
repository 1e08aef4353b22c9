//! Model files: mapped, checked, and handed out as buffers.
