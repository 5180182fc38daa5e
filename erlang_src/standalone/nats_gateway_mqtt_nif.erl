%% MQTT 5 packets, percent coding and TOML for the standalone gateway.
%%
%% Every function is stateless. `decode/2' handles a bounded number of packets and bytes per call.
%% If it stops early, `Need' is 0, and the caller calls it again with the rest.
-module(nats_gateway_mqtt_nif).

-on_load(load/0).

-export([decode/2]).
-export([encode/1]).
-export([is_string/1]).
-export([is_topic/1]).
-export([quote/1]).
-export([unquote/1]).
-export([toml/1]).

-nifs([
    decode_bounded/3,
    decode_long/3,
    encode/1,
    is_string/1,
    is_topic/1,
    quote/1,
    unquote/1,
    toml/1
]).

-include("nats_gateway_mqtt.hrl").

-export_type([qos/0, packet_id/0, packet/0, received/0, properties/0, decode_error/0, toml/0]).

-type qos() :: 0..2.
-type packet_id() :: 1..65535.

%% The packets that a client sends. The session is always a new one. A password requires a username,
%% which may be empty.
-type packet() ::
    #publish{}
    | #puback{}
    | #pubrel{}
    | #connect{}
    | #subscribe{}
    | #unsubscribe{}
    | pingreq
    | #disconnect{}.

%% The packets that a broker sends to a client that subscribes with QoS 1 at most, and uses no enhanced
%% authentication.
-type received() ::
    #publish{}
    | #puback{}
    | #pubrec{}
    | #pubcomp{}
    | #connack{}
    | #suback{}
    | #unsuback{}
    | pingresp
    | #disconnect{}
    | #unreadable{}.

%% Only the properties that the packet has.
-type properties() :: #{
    assigned_client_identifier => binary(),
    maximum_packet_size => pos_integer(),
    maximum_qos => 0..1,
    reason_string => binary(),
    receive_maximum => 1..65535,
    retain_available => boolean(),
    server_keep_alive => 0..65535,
    shared_subscription_available => boolean(),
    subscription_identifier_available => boolean(),
    topic_alias_maximum => 0..65535,
    wildcard_subscription_available => boolean()
}.

%% `old_version' is the answer to CONNECT of a broker that does not speak MQTT 5.
-type decode_error() :: malformed_packet | packet_too_large | unexpected_packet | old_version.

%% Dates and times stay texts.
-type toml() ::
    binary() | integer() | float() | boolean() | [toml()] | #{binary() => toml()}.

-spec load() -> ok | {error, term()}.
load() ->
    case nats_gateway_nif:library("nats_gateway_mqtt_nif") of
        {ok, Library} -> erlang:load_nif(Library, 0);
        {error, Reason} -> {error, Reason}
    end.

%% Returns all complete packets of the bytes, the rest, and the number of bytes that the rest must
%% have before another call can yield more (0: call again at once). On an error, the packets before
%% it are still valid. No payload keeps more than 64 times its own bytes alive.
-spec decode(binary(), MaxPacketSize :: pos_integer()) ->
    {ok, [received()], Rest :: binary(), Need :: non_neg_integer()}
    | {error, decode_error(), [received()]}.
decode(Bytes, MaxPacketSize) ->
    Referenced = binary:referenced_byte_size(Bytes),
    case decode_bounded(Bytes, Referenced, MaxPacketSize) of
        %% The first packet has too many properties to be handled on a normal scheduler.
        long -> decode_long(Bytes, Referenced, MaxPacketSize);
        Result -> Result
    end.

decode_bounded(_Bytes, _Referenced, _MaxPacketSize) -> erlang:nif_error(not_loaded).

decode_long(_Bytes, _Referenced, _MaxPacketSize) -> erlang:nif_error(not_loaded).

%% Payloads of 4 KiB and more are passed by reference. Raises `badarg' if a packet is invalid, has a
%% topic that is not `is_topic/1', or has other text that is not `is_string/1'.
-spec encode([packet()]) -> iodata().
encode(_Packets) -> erlang:nif_error(not_loaded).

%% Whether every broker takes the text as a string: UTF-8 of at most 65535 bytes, without control
%% characters and non-characters.
-spec is_string(binary()) -> boolean().
is_string(_Bytes) -> erlang:nif_error(not_loaded).

%% The same for a name to which a client can publish: it must not be empty or have wildcards.
-spec is_topic(binary()) -> boolean().
is_topic(_Bytes) -> erlang:nif_error(not_loaded).

%% Writes any bytes as ASCII without control characters.
-spec quote(binary()) -> binary().
quote(_Bytes) -> erlang:nif_error(not_loaded).

-spec unquote(binary()) -> binary().
unquote(_Text) -> erlang:nif_error(not_loaded).

%% The error text begins with the number of the line, and quotes nothing of the line.
-spec toml(binary()) -> {ok, #{binary() => toml()}} | {error, Text :: binary()}.
toml(_Text) -> erlang:nif_error(not_loaded).
