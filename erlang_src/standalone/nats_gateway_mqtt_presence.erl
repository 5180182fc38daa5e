%% Presence of a client at the broker (nats_gateway_presence): the will of its connection, and the
%% message after the login.
%%
%% The message that the client is gone is always the will: the broker publishes it when the
%% connection breaks, and when it ends with a DISCONNECT that asks for it. So exactly one is
%% published, whoever dies.
-module(nats_gateway_mqtt_presence).

-export([will/1]).
-export([connected/2]).
-export([disconnect_reason/1]).
-export([refused/3]).
-export([answered/2]).

-include("nats_gateway_mqtt.hrl").

-export_type([presence/0]).

-type presence() :: none | nats_gateway_presence:messages().

%% What the broker has said in CONNACK.
-type broker() :: #{
    max_packet := pos_integer(),
    max_qos := 0 | 1,
    retain_available := boolean()
}.

%% DISCONNECT
-define(NORMAL_DISCONNECTION, 16#00).
-define(DISCONNECT_WITH_WILL, 16#04).

%% Reasons of CONNACK for which the will may be why: unspecified, not authorized, topic name invalid,
%% packet too large, quota exceeded, payload format invalid.
-define(MAY_BE_THE_WILL, [16#80, 16#83, 16#87, 16#90, 16#95, 16#97, 16#99]).
-define(RETAIN_NOT_SUPPORTED, 16#9A).
-define(QOS_NOT_SUPPORTED, 16#9B).

%% The bytes of a PUBLISH without topic and payload, at most.
-define(PUBLISH_BYTES, 10).

%% For #connect{}.
-spec will(presence()) -> undefined | tuple().
will(none) ->
    undefined;
will(#{topic := Topic, disconnected := Payload, qos := QoS, retain := Retain}) ->
    {Topic, Payload, QoS, Retain}.

%% The message to publish after the login.
-spec connected(presence(), broker()) -> none | #publish{}.
connected(none, _) ->
    none;
connected(Presence = #{topic := Topic, connected := Payload}, Broker) ->
    #{max_packet := MaxPacket, max_qos := MaxQos, retain_available := RetainAvailable} = Broker,
    #{qos := QoS, retain := Retain} = Presence,
    case byte_size(Topic) + byte_size(Payload) + ?PUBLISH_BYTES =< MaxPacket of
        true ->
            #publish{
                topic = Topic,
                payload = Payload,
                qos = min(QoS, MaxQos),
                retain = Retain andalso RetainAvailable
            };
        false ->
            Facts = #{reason => larger_than_the_broker_takes},
            ok = nats_gateway_presence:log_once(connected, Facts, Presence),
            none
    end.

-spec disconnect_reason(presence()) -> byte().
disconnect_reason(none) -> ?NORMAL_DISCONNECTION;
disconnect_reason(#{}) -> ?DISCONNECT_WITH_WILL.

%% What the log says of a refused CONNECT besides the broker's reason.
-spec refused(Reason :: byte(), Details :: map(), presence()) -> Details :: map().
refused(_, Details, none) ->
    Details;
refused(?RETAIN_NOT_SUPPORTED, Details, _) ->
    Details#{hint => <<"the broker takes no retained will: set presence.retain = false">>};
refused(?QOS_NOT_SUPPORTED, Details, _) ->
    Details#{hint => <<"the broker takes no will with QoS 1: set presence.qos = 0">>};
refused(Reason, Details, #{topic := Topic}) ->
    case lists:member(Reason, ?MAY_BE_THE_WILL) of
        true ->
            Details#{
                hint => <<"the broker may have refused the will, which is for presence.topic">>,
                will_topic => nats_gateway_suspects:label(Topic)
            };
        false ->
            Details
    end.

%% The broker's answer to the message after the login.
-spec answered(Reason :: byte(), presence()) -> ok.
answered(Reason, Presence = #{topic := Topic}) when Reason >= 16#80 ->
    nats_gateway_presence:log_once(
        topic,
        #{
            reason => nats_gateway_mqtt_reason:name(Reason),
            topic => nats_gateway_suspects:label(Topic)
        },
        Presence
    );
answered(_, _) ->
    ok.
