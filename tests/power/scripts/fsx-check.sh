# shellcheck shell=dash
# The file is as its model says for the last sync that was answered.
export FSX_DIRECTORY="$D/fsx-$ROUND" FSX_SEED="$SEED" FSX_ANSWERED
FSX_ANSWERED=$(tail -n 1 "$ANSWERED")
"$POWER" --exact --nocapture power::fsx::a_file_does_as_its_model
