"""Files: `.saec`, codec files, SAE checkpoints and activation arrays. Installed as `saecodec.formats`."""
