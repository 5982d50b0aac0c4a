//! File systems on top of the vault: an image file behind a loop device, and the mount as an overlay's lower layer.

use crate::Stage;

#[test]
fn an_image_file_behind_a_loop_device_holds_a_file_system() {
    Stage::new().passes(
        r#"
mkdir $W/m
truncate -s 64M img; mkfs.ext4 -q -F img
trap 'mountpoint -q $W/m && umount $W/m; losetup -j img -O NAME -n | xargs -r losetup -d' EXIT
for direct in off on; do
    device=$(losetup -f --show --direct-io=$direct img); mount $device $W/m
    cp -r /usr/share/common-licenses $W/m/$direct; seq 100000 >$W/m/$direct.txt
    fstrim $W/m; umount $W/m; losetup -d $device
    e2fsck -fn img >$W/said 2>$W/e2fsck || { cat $W/said >&2; exit 1; }
done
mount -o loop,ro img $W/m
for direct in off on; do seq 100000 | cmp - $W/m/$direct.txt; diff -r /usr/share/common-licenses $W/m/$direct; done
umount $W/m
[ $(du -k img | cut -f1) -lt 30000 ]
"#,
    );
}

#[test]
fn the_mount_is_the_lower_layer_of_an_overlay() {
    Stage::new().passes(
        r#"
mkdir -p low/d $W/upper $W/m
mount -t tmpfs tmpfs $W/upper; mkdir $W/upper/upper $W/upper/work
trap '! mountpoint -q $W/m || umount $W/m; umount $W/upper' EXIT
echo low >low/f; echo low >low/d/g; ln -s f low/l; ln low/f low/h; setfattr -n user.x -v y low/f
mount -t overlay overlay -o lowerdir=$V/low,upperdir=$W/upper/upper,workdir=$W/upper/work $W/m
same "$(cat $W/m/f $W/m/d/g $W/m/l)" $'low\nlow\nlow'
echo up >>$W/m/f; same "$(getfattr --absolute-names --only-values -n user.x $W/m/f)" y
rm -r $W/m/d; mkdir $W/m/d; echo new >$W/m/d/new; mv $W/m/h $W/m/moved; chmod 600 $W/m/moved
same "$(cat $W/m/f)" $'low\nup'; same "$(ls $W/m/d)" new; same "$(ls -1 $W/m | tr '\n' ' ')" 'd f l moved '
same "$(cat low/f low/d/g)" $'low\nlow'
"#,
    );
}
