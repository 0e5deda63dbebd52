"""Start the segmentation node on a camera: `ros2 launch lix_ros segmentation.launch.py image:=/front/image_raw`.

Arguments that are left empty leave the matter to the parameter file. To include this file more than once, wrap each
inclusion in a GroupAction (see demo.launch.py), or its arguments reach the next one.
"""

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from lix_ros.paths import share_directory, transport_environment

CONFIG = share_directory() / "config"
PARAMETER_TYPES = {"model": str, "backend": str, "use_sim_time": bool}

ARGUMENTS = [
    DeclareLaunchArgument("name", default_value="segmentation", description="Name of the node: it publishes <name>/mask and so on."),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and of every relative topic name."),
    DeclareLaunchArgument("image", default_value="camera/image_raw", description="Topic of the images (JPEG: <image>/compressed)."),
    DeclareLaunchArgument("camera_info", default_value="", description="Topic of the calibration; empty: camera_info beside the image."),
    DeclareLaunchArgument("model", default_value="", description="Model bundle: a name that `lix models` lists, or a path."),
    DeclareLaunchArgument("backend", default_value="", description="Inference backend: auto, onnxruntime, openvino or torch."),
    DeclareLaunchArgument("params_file", default_value=str(CONFIG / "segmentation.yaml"), description="Parameter file of the node."),
    DeclareLaunchArgument("use_sim_time", default_value="", description="true: time comes from /clock, as in simulation."),
    DeclareLaunchArgument(
        "transport",
        default_value="",
        description="How Fast DDS carries images: lix (config/fastdds.xml, unless the environment has "
        "another profile), default, or the path of a profile; empty: $LIX_TRANSPORT, or else lix.",
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="Log level of the node: debug, info, warn, error or fatal."),
    DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="Show image, classes and overlay in rviz."),
    DeclareLaunchArgument("rviz_frame", default_value="camera_optical_frame", description="Fixed frame of rviz: frame_id of the images."),
]


def make_nodes(context: LaunchContext) -> list:
    arguments = {a.name: context.launch_configurations[a.name] for a in ARGUMENTS}
    given = {p: ParameterValue(LaunchConfiguration(p), value_type=t) for p, t in PARAMETER_TYPES.items() if arguments[p]}
    image = arguments["image"].rstrip("/")
    camera_info = arguments["camera_info"] or "/".join([*image.split("/")[:-1], "camera_info"])
    # The environment of the nodes alone is changed: whoever includes this file keeps the transport they have.
    common = {
        "namespace": arguments["namespace"],
        "additional_env": transport_environment(arguments["transport"], context.environment),
        "output": "screen",
        "emulate_tty": True,
    }
    node = Node(
        package="lix_ros",
        executable="segmentation",
        name=arguments["name"],
        parameters=[arguments["params_file"], *([given] if given else [])],
        remappings=[("image", image), ("image/compressed", f"{image}/compressed"), ("camera_info", camera_info)],
        ros_arguments=["--log-level", arguments["log_level"]],
        **common,
    )
    if arguments["rviz"] == "false":
        return [node]
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        return [node, LogInfo(msg="rviz2 is not installed (apt install ros-$ROS_DISTRO-rviz2): going on without it")]
    # lix.rviz has the topics of the default arguments, so that it opens by hand too; here they become those of this node.
    name = arguments["name"]
    shown = {"/camera/image_raw": image, **{f"/segmentation/{t}": f"{name}/{t}" for t in ("overlay", "color", "camera_info")}}
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(CONFIG / "lix.rviz"), "-f", arguments["rviz_frame"]],
        parameters=[{"use_sim_time": given["use_sim_time"]}] if "use_sim_time" in given else [],
        remappings=list(shown.items()),
        **common,
    )
    return [node, rviz]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=make_nodes)])
