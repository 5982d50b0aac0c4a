//! What the generated operations found once, each as small as it could be made.
