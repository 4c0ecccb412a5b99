# shellcheck shell=dash
# Random operations on a file, by the program of the tests itself: see fsx.rs. It says each sync that was answered.
rm -rf "$D"/fsx-*
mkdir "$D/fsx-$ROUND"
sync
export FSX_DIRECTORY="$D/fsx-$ROUND" FSX_SEED="$SEED"
"$POWER" --exact --nocapture power::fsx::a_file_does_as_its_model
