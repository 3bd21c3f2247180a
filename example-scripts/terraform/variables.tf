variable "name" {
  description = "Prefix of all names."
  type        = string
  default     = "gwlbtun"
}

variable "topology" {
  description = "one-arm, two-arm or autoscaling: as the CloudFormation templates of these names."
  type        = string
  default     = "one-arm"
  validation {
    condition     = contains(["one-arm", "two-arm", "autoscaling"], var.topology)
    error_message = "Write one-arm, two-arm or autoscaling."
  }
}

variable "family" {
  description = "Instances of the targets. c5n and c6in are x86_64, c6gn and c7gn are arm64."
  type        = string
  default     = "c6gn"
  validation {
    condition     = contains(["c5n", "c6in", "c6gn", "c7gn"], var.family)
    error_message = "Write c5n, c6in, c6gn or c7gn."
  }
}

variable "size" {
  description = "Their size. Each target builds gwlbtun itself, which takes less time on larger ones."
  type        = string
  default     = "large"
}

variable "kernel" {
  description = "Linux of the Amazon Linux 2023 image: 6.1, 6.12 or 6.18."
  type        = string
  default     = "6.18"
}

variable "repository" {
  description = "Where targets clone gwlbtun from, without a password."
  type        = string
  validation {
    condition     = can(regex("^https://[-A-Za-z0-9._~/]+$", var.repository))
    error_message = "Write an https address without a password."
  }
}

variable "revision" {
  description = "Branch, tag or commit of it to build; a commit is the same for all targets."
  type        = string
  default     = "HEAD"
  validation {
    condition     = can(regex("^[A-Za-z0-9][-A-Za-z0-9._/]*$", var.revision))
    error_message = "Write a branch, a tag or a commit."
  }
}

variable "tcp_idle_seconds" {
  description = "Seconds after which an idle TCP flow is forgotten, by load balancer and gwlbtun alike."
  type        = number
  default     = 350
  validation {
    condition     = var.tcp_idle_seconds >= 60 && var.tcp_idle_seconds <= 6000
    error_message = "The load balancer takes 60 to 6000."
  }
}

variable "targets_min" {
  description = "Targets of the Auto Scaling group at least, and at the start."
  type        = number
  default     = 2
}

variable "targets_max" {
  description = "Targets of the Auto Scaling group at most."
  type        = number
  default     = 4
}
