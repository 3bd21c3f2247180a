# gwlbtun behind a Gateway Load Balancer: two VPCs, two zones, IPv4 and IPv6, and a client in each
# zone to try it with. The same stacks as the CloudFormation templates beside this folder, chosen by
# the variable "topology"; TOPOLOGIES.md there has the drawings, the costs and what was checked.

terraform {
  required_version = ">= 1.3"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.81"
    }
  }
}

data "aws_availability_zones" "here" {
  state = "available"
}

data "aws_region" "here" {}

data "aws_caller_identity" "here" {}

data "aws_partition" "here" {}

data "aws_ssm_parameter" "image" {
  name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-${var.kernel}-${local.architecture}"
}

locals {
  zones        = { a = 0, b = 1 }
  two_arm      = var.topology == "two-arm"
  autoscaling  = var.topology == "autoscaling"
  arm64        = contains(["c6gn", "c7gn"], var.family)
  architecture = local.arm64 ? "arm64" : "x86_64"
  group        = "${var.name}-targets"

  user_data = base64encode(templatefile("${path.module}/user-data.sh.tftpl", {
    repository   = var.repository
    revision     = var.revision
    idle         = var.tcp_idle_seconds
    hook         = local.two_arm ? "create-nat.sh" : "create-passthrough.sh"
    tune_options = local.two_arm ? "--two-arm" : ""
    autoscaling  = local.autoscaling
    group        = local.group
    region       = data.aws_region.here.name
    target_group = aws_lb_target_group.targets.arn
  }))
}

# ------------------------------------------------------------------ where the targets are

resource "aws_vpc" "appliances" {
  cidr_block                       = "10.10.0.0/16"
  assign_generated_ipv6_cidr_block = true
  enable_dns_support               = true
  enable_dns_hostnames             = true
  tags                             = { Name = "${var.name} appliances" }
}

resource "aws_internet_gateway" "appliances" {
  vpc_id = aws_vpc.appliances.id
  tags   = { Name = "${var.name} appliances" }
}

# With one arm targets have no public address, and no IPv6 address: GENEVE travels in IPv4 also when
# IPv6 is inside. A dualstack load balancer wants IPv6 subnets all the same. With two arms a target is a
# NAT, so it has an address of the internet in either family.
resource "aws_subnet" "appliances" {
  for_each                        = local.zones
  vpc_id                          = aws_vpc.appliances.id
  availability_zone               = data.aws_availability_zones.here.names[each.value]
  cidr_block                      = cidrsubnet(aws_vpc.appliances.cidr_block, 8, each.value)
  ipv6_cidr_block                 = cidrsubnet(aws_vpc.appliances.ipv6_cidr_block, 8, each.value)
  assign_ipv6_address_on_creation = local.two_arm
  map_public_ip_on_launch         = local.two_arm
  tags                            = { Name = "${var.name} appliances ${each.key}" }
}

resource "aws_route_table" "appliances" {
  vpc_id = aws_vpc.appliances.id
  tags   = { Name = "${var.name} appliances" }
}

resource "aws_route_table_association" "appliances" {
  for_each       = local.zones
  subnet_id      = aws_subnet.appliances[each.key].id
  route_table_id = aws_route_table.appliances.id
}

# One arm: for the installation and for Systems Manager; no packet of a client goes this way.
resource "aws_route" "appliances_default" {
  route_table_id         = aws_route_table.appliances.id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = local.two_arm ? aws_internet_gateway.appliances.id : null
  nat_gateway_id         = local.two_arm ? null : aws_nat_gateway.appliances[0].id
}

resource "aws_route" "appliances_default6" {
  count                       = local.two_arm ? 1 : 0
  route_table_id              = aws_route_table.appliances.id
  destination_ipv6_cidr_block = "::/0"
  gateway_id                  = aws_internet_gateway.appliances.id
}

resource "aws_subnet" "appliances_public" {
  count             = local.two_arm ? 0 : 1
  vpc_id            = aws_vpc.appliances.id
  availability_zone = data.aws_availability_zones.here.names[0]
  cidr_block        = "10.10.2.0/24"
  tags              = { Name = "${var.name} appliances public" }
}

resource "aws_route_table" "appliances_public" {
  count  = local.two_arm ? 0 : 1
  vpc_id = aws_vpc.appliances.id
  tags   = { Name = "${var.name} appliances public" }
}

resource "aws_route_table_association" "appliances_public" {
  count          = local.two_arm ? 0 : 1
  subnet_id      = aws_subnet.appliances_public[0].id
  route_table_id = aws_route_table.appliances_public[0].id
}

resource "aws_route" "appliances_public_default" {
  count                  = local.two_arm ? 0 : 1
  route_table_id         = aws_route_table.appliances_public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.appliances.id
}

resource "aws_eip" "appliances" {
  count      = local.two_arm ? 0 : 1
  domain     = "vpc"
  tags       = { Name = "${var.name} appliances" }
  depends_on = [aws_internet_gateway.appliances]
}

resource "aws_nat_gateway" "appliances" {
  count         = local.two_arm ? 0 : 1
  allocation_id = aws_eip.appliances[0].id
  subnet_id     = aws_subnet.appliances_public[0].id
  tags          = { Name = "${var.name} appliances" }
  depends_on    = [aws_route.appliances_public_default, aws_route_table_association.appliances_public]
}

resource "aws_security_group" "targets" {
  name        = local.group
  description = "GENEVE and health checks from the load balancer, which has no group"
  vpc_id      = aws_vpc.appliances.id

  ingress {
    description = "GENEVE"
    protocol    = "udp"
    from_port   = 6081
    to_port     = 6081
    cidr_blocks = [for subnet in aws_subnet.appliances : subnet.cidr_block]
  }

  ingress {
    description = "health"
    protocol    = "tcp"
    from_port   = 8080
    to_port     = 8080
    cidr_blocks = [for subnet in aws_subnet.appliances : subnet.cidr_block]
  }

  # What goes back to the load balancer keeps both ports, so it is no reply in the eyes of this group:
  # port 6081 must be open outwards too.
  egress {
    description = "GENEVE"
    protocol    = "udp"
    from_port   = 6081
    to_port     = 6081
    cidr_blocks = [for subnet in aws_subnet.appliances : subnet.cidr_block]
  }

  # One arm: the installation, and Systems Manager. Two arms: whatever clients send.
  egress {
    description      = local.two_arm ? "all" : "HTTPS"
    protocol         = local.two_arm ? "-1" : "tcp"
    from_port        = local.two_arm ? 0 : 443
    to_port          = local.two_arm ? 0 : 443
    cidr_blocks      = ["0.0.0.0/0"]
    ipv6_cidr_blocks = local.two_arm ? ["::/0"] : []
  }
}

# ------------------------------------------------------------------ load balancer and targets

resource "aws_lb" "gwlb" {
  name               = var.name
  load_balancer_type = "gateway"
  ip_address_type    = "dualstack"
  subnets            = [for subnet in aws_subnet.appliances : subnet.id]
  # A zone without a healthy target uses the other's. Traffic between zones costs money.
  enable_cross_zone_load_balancing = true
}

resource "aws_lb_target_group" "targets" {
  name        = local.group
  vpc_id      = aws_vpc.appliances.id
  protocol    = "GENEVE"
  port        = 6081
  target_type = "instance"

  # gwlbtun answers 503 when it cannot serve. After two such answers, 10 s apart, new flows go to other
  # targets.
  health_check {
    protocol            = "HTTP"
    port                = 8080
    path                = "/"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }

  # One arm: any target can take over any flow. Two arms: the target's NAT knows its flows and no other
  # target does, so they stay until they end.
  target_failover {
    on_deregistration = local.two_arm ? "no_rebalance" : "rebalance"
    on_unhealthy      = local.two_arm ? "no_rebalance" : "rebalance"
  }
  deregistration_delay = local.two_arm ? 350 : 60

  # Flows are told apart by addresses, protocol and ports, which the TCP idle time of the listener needs.
  stickiness {
    enabled = false
    type    = "source_ip_dest_ip"
  }
}

# No protocol and no port: it listens to all.
resource "aws_lb_listener" "all" {
  load_balancer_arn        = aws_lb.gwlb.arn
  tcp_idle_timeout_seconds = var.tcp_idle_seconds

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.targets.arn
  }
}

resource "aws_vpc_endpoint_service" "gwlb" {
  gateway_load_balancer_arns = [aws_lb.gwlb.arn]
  supported_ip_address_types = ["ipv4", "ipv6"]
  acceptance_required        = false
  tags                       = { Name = "${var.name} service" }
}

# Session Manager, and on the targets of an Auto Scaling group what autoscaling.sh says to AWS.
resource "aws_iam_role" "targets" {
  name_prefix = "${var.name}-target-"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy_attachment" "targets" {
  role       = aws_iam_role.targets.name
  policy_arn = "arn:${data.aws_partition.here.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_role_policy" "lifecycle" {
  count = local.autoscaling ? 1 : 0
  name  = "lifecycle"
  role  = aws_iam_role.targets.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Effect   = "Allow"
        Action   = "autoscaling:CompleteLifecycleAction"
        Resource = "arn:${data.aws_partition.here.partition}:autoscaling:${data.aws_region.here.name}:${data.aws_caller_identity.here.account_id}:autoScalingGroup:*:autoScalingGroupName/${local.group}"
      },
      {
        Effect   = "Allow"
        Action   = "elasticloadbalancing:DeregisterTargets"
        Resource = aws_lb_target_group.targets.arn
      },
      {
        Effect   = "Allow"
        Action   = "elasticloadbalancing:DescribeTargetHealth"
        Resource = "*"
      },
    ]
  })
}

resource "aws_iam_instance_profile" "targets" {
  name_prefix = "${var.name}-target-"
  role        = aws_iam_role.targets.name
}

resource "aws_instance" "target" {
  for_each                    = local.autoscaling ? {} : local.zones
  ami                         = data.aws_ssm_parameter.image.value
  instance_type               = "${var.family}.${var.size}"
  subnet_id                   = aws_subnet.appliances[each.key].id
  vpc_security_group_ids      = [aws_security_group.targets.id]
  iam_instance_profile        = aws_iam_instance_profile.targets.name
  user_data_base64            = local.user_data
  user_data_replace_on_change = true
  # With two arms, for hooks that send packets with addresses of others: see the peering connection.
  source_dest_check = !local.two_arm
  tags              = { Name = "${var.name} target ${each.key}" }
  depends_on        = [aws_route.appliances_default, aws_route_table_association.appliances]

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_size = 10
    volume_type = "gp3"
    encrypted   = true
  }

  lifecycle {
    ignore_changes = [ami]
  }
}

resource "aws_lb_target_group_attachment" "targets" {
  for_each         = aws_instance.target
  target_group_arn = aws_lb_target_group.targets.arn
  target_id        = each.value.id
}

resource "aws_launch_template" "targets" {
  count                  = local.autoscaling ? 1 : 0
  name_prefix            = "${var.name}-target-"
  image_id               = data.aws_ssm_parameter.image.value
  instance_type          = "${var.family}.${var.size}"
  vpc_security_group_ids = [aws_security_group.targets.id]
  user_data              = local.user_data

  iam_instance_profile {
    arn = aws_iam_instance_profile.targets.arn
  }

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size           = 10
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = { Name = "${var.name} target" }
  }
}

resource "aws_autoscaling_group" "targets" {
  count               = local.autoscaling ? 1 : 0
  name                = local.group
  vpc_zone_identifier = [for subnet in aws_subnet.appliances : subnet.id]
  min_size            = var.targets_min
  max_size            = var.targets_max
  target_group_arns   = [aws_lb_target_group.targets.arn]
  # Health counts from the end of the "ready" hook on: gwlbtun answers by then.
  health_check_type         = "ELB"
  health_check_grace_period = 60
  default_instance_warmup   = 60
  wait_for_capacity_timeout = "20m"
  depends_on = [
    aws_route.appliances_default,
    aws_route_table_association.appliances,
    aws_lb_listener.all,
    aws_iam_role_policy.lifecycle,
  ]

  launch_template {
    id      = aws_launch_template.targets[0].id
    version = aws_launch_template.targets[0].latest_version
  }

  # One that is not ready after 20 minutes is given up.
  initial_lifecycle_hook {
    name                 = "ready"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    heartbeat_timeout    = 1200
    default_result       = "ABANDON"
  }

  # autoscaling.sh takes 10 minutes and some seconds at most. When the time is over, the instance goes in
  # any case.
  initial_lifecycle_hook {
    name                 = "drain"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = 900
    default_result       = "CONTINUE"
  }

  instance_refresh {
    strategy = "Rolling"
    preferences {
      min_healthy_percentage = 50
    }
  }
}

# A worker sleeps while it has nothing to do, so CPU time follows traffic.
resource "aws_autoscaling_policy" "cpu" {
  count                  = local.autoscaling ? 1 : 0
  name                   = "cpu"
  autoscaling_group_name = aws_autoscaling_group.targets[0].name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    target_value = 50
    predefined_metric_specification {
      predefined_metric_type = "ASGAverageCPUUtilization"
    }
  }
}
