"""Start the geometry node on a stereo pair, a LiDAR or a depth camera:

ros2 launch lix_ros geometry.launch.py left:=/stereo/left/image_rect right:=/stereo/right/image_rect
ros2 launch lix_ros geometry.launch.py input:=lidar points:=/velodyne_points camera_info:=/camera/camera_info
ros2 launch lix_ros geometry.launch.py input:=depth depth:=/camera/depth/image_rect_raw

Arguments that are left empty leave the matter to the parameter file. To include this file more than once, wrap each
inclusion in a GroupAction (see demo.launch.py), or its arguments reach the next one.
"""

from typing import List

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from lix_ros.paths import share_directory, transport_environment

CONFIG = share_directory() / "config"
# typing.List: the list type that launch_ros documents.
PARAMETER_TYPES = {"input": str, "rectify": bool, "extrinsics": List[float], "use_sim_time": bool}

ARGUMENTS = [
    DeclareLaunchArgument("name", default_value="geometry", description="Name of the node: it publishes <name>/depth and so on."),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and of every relative topic name."),
    DeclareLaunchArgument("input", default_value="", description="Where depth comes from: stereo, lidar or depth."),
    DeclareLaunchArgument(
        "left", default_value="left/image_rect", description="Stereo: topic of the left images; camera_info is beside it."
    ),
    DeclareLaunchArgument(
        "right", default_value="right/image_rect", description="Stereo: topic of the right images; camera_info is beside it."
    ),
    DeclareLaunchArgument("points", default_value="points", description="LiDAR: topic of the point clouds."),
    DeclareLaunchArgument("camera_info", default_value="camera/camera_info", description="LiDAR: topic of the camera's calibration."),
    DeclareLaunchArgument(
        "depth",
        default_value="camera/depth/image_rect_raw",
        description="Depth camera: topic of the depth images; camera_info is beside it.",
    ),
    DeclareLaunchArgument("rectify", default_value="", description="Stereo: true rectifies the images first."),
    DeclareLaunchArgument(
        "extrinsics",
        default_value="",
        description="LiDAR: its pose in the camera's optical frame, as [x, y, z, qx, qy, qz, qw]; empty: TF.",
    ),
    DeclareLaunchArgument("params_file", default_value=str(CONFIG / "geometry.yaml"), description="Parameter file of the node."),
    DeclareLaunchArgument("use_sim_time", default_value="", description="true: time comes from /clock, as in simulation."),
    DeclareLaunchArgument(
        "transport",
        default_value="",
        description="How Fast DDS carries images: lix (config/fastdds.xml, unless the environment has "
        "another profile), default, or the path of a profile; empty: $LIX_TRANSPORT, or else lix.",
    ),
    DeclareLaunchArgument("log_level", default_value="info", description="Log level of the node: debug, info, warn, error or fatal."),
    DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="Show depth, normals and points in rviz."),
    DeclareLaunchArgument("rviz_frame", default_value="camera_optical_frame", description="Fixed frame of rviz: frame_id of the images."),
]


def info_beside(image: str) -> str:
    return "/".join([*image.split("/")[:-1], "camera_info"])


def make_nodes(context: LaunchContext) -> list:
    arguments = {a.name: context.launch_configurations[a.name] for a in ARGUMENTS}
    given = {p: ParameterValue(LaunchConfiguration(p), value_type=t) for p, t in PARAMETER_TYPES.items() if arguments[p]}
    images = {f"{side}/image": arguments[side].rstrip("/") for side in ("left", "right", "depth")}
    topics = {
        **images,
        **{info_beside(topic): info_beside(image) for topic, image in images.items()},
        "points": arguments["points"],
        "camera_info": arguments["camera_info"],
    }
    # The environment of the nodes alone is changed: whoever includes this file keeps the transport they have.
    common = {
        "namespace": arguments["namespace"],
        "additional_env": transport_environment(arguments["transport"], context.environment),
        "output": "screen",
        "emulate_tty": True,
    }
    node = Node(
        package="lix_ros",
        executable="geometry",
        name=arguments["name"],
        parameters=[arguments["params_file"], *([given] if given else [])],
        remappings=list(topics.items()),
        ros_arguments=["--log-level", arguments["log_level"]],
        **common,
    )
    if arguments["rviz"] == "false":
        return [node]
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        return [node, LogInfo(msg="rviz2 is not installed (apt install ros-$ROS_DISTRO-rviz2): going on without it")]
    # geometry.rviz has the topics of the default arguments, so that it opens by hand too; here they become those of this node.
    name = arguments["name"]
    shown = {
        "/left/image_rect": images["left/image"],
        "/points": arguments["points"],
        **{f"/geometry/{t}": f"{name}/{t}" for t in ("depth", "normals_color", "camera_info")},
    }
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(CONFIG / "geometry.rviz"), "-f", arguments["rviz_frame"]],
        parameters=[{"use_sim_time": given["use_sim_time"]}] if "use_sim_time" in given else [],
        remappings=list(shown.items()),
        **common,
    )
    return [node, rviz]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=make_nodes)])
