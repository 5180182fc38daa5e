%% The headers with which clients set properties of an MQTT PUBLISH, and those that tell clients the
%% properties of a delivery (docs/retained.md). Both hosts use this module, if their settings say so.
-module(nats_gateway_publish_properties).

-export([take/3]).
-export([error_line/3]).
-export([status/2]).
-export([show/2]).

-include("nats_gateway.hrl").

-export_type([demand/0, facts/0]).

%% The reason why a header cannot be followed.
-type demand() ::
    value
    | repeated
    %% the payload is not what the header says
    | payload
    %% the message has a reply subject, which is its response topic
    | reply_subject
    %% the topic is too long with the mountpoint
    | too_long
    %% the broker takes only these
    | {max_qos, 0 | 1}
    | not_retained.

-type limits() :: #{
    mountpoint := binary(), max_qos := 0..2, retain_available := boolean(), atom() => term()
}.

%% The properties of a delivery.
-type facts() :: #{
    retain := boolean(),
    qos := 0..2,
    expiry := undefined | non_neg_integer(),
    payload_format := undefined | 0..1
}.

-define(RETAIN, <<"Mqtt-Retain">>).
-define(QOS, <<"Mqtt-Qos">>).
-define(EXPIRY, <<"Mqtt-Expiry">>).
-define(PAYLOAD_FORMAT, <<"Mqtt-Payload-Format">>).
-define(RESPONSE_TOPIC, <<"Mqtt-Response-Topic">>).
-define(LOWERCASE_NAMES, [
    <<"mqtt-retain">>,
    <<"mqtt-qos">>,
    <<"mqtt-expiry">>,
    <<"mqtt-payload-format">>,
    <<"mqtt-response-topic">>
]).

-define(MAX_STRING, 65535).

%% -------------------------------------------------------------------------------------------
%% Publish

%% Takes the properties out of the headers of a publish. The message that is left has the other
%% headers, and the response topic as its reply topic.
-spec take(#pub{}, Block :: binary(), limits()) ->
    none | {#properties{}, #pub{}} | {property, Header :: binary(), demand()}.
take(Pub = #pub{payload = Payload}, Block, Limits) ->
    case nats_gateway_nif:publish_properties(Block, Payload) of
        none -> none;
        {refused, Header, Demand} -> {property, Header, Demand};
        Properties -> available(Properties, Pub, Limits)
    end.

available(#properties{qos = QoS}, _, #{max_qos := Max}) when is_integer(QoS), QoS > Max ->
    {property, ?QOS, {max_qos, Max}};
available(#properties{retain = true}, _, #{retain_available := false}) ->
    {property, ?RETAIN, not_retained};
available(#properties{response_topic = Topic}, #pub{reply_to = ReplyTo}, _) when
    Topic =/= undefined, ReplyTo =/= undefined
->
    {property, ?RESPONSE_TOPIC, reply_subject};
available(Properties = #properties{response_topic = undefined, headers = Headers}, Pub, _) ->
    {Properties, Pub#pub{headers = Headers}};
available(Properties, Pub, #{mountpoint := Mountpoint}) ->
    #properties{response_topic = Topic, headers = Headers} = Properties,
    Mounted = <<Mountpoint/binary, Topic/binary>>,
    case byte_size(Mounted) =< ?MAX_STRING of
        true ->
            Subject = nats_gateway_nif:subject(Mounted, Mountpoint),
            {Properties, Pub#pub{headers = Headers, reply_to = Subject, reply_topic = Mounted}};
        false ->
            {property, ?RESPONSE_TOPIC, too_long}
    end.

%% The line of -ERR. The official clients know its beginning, and go on after it (docs/protocol.md,
%% section 1). It never has the value, which may hold anything.
-spec error_line(Subject :: binary(), Header :: binary(), demand()) -> iodata().
error_line(Subject, Header, Demand) ->
    nats_gateway_ending:violation([
        <<"Publish to ">>, nats_gateway_nif:quote(Subject), <<", ">>, Header, $\s, text(Header, Demand)
    ]).

text(?RETAIN, value) ->
    <<"must be true or false">>;
text(?QOS, value) ->
    <<"must be 0, 1 or 2">>;
text(?EXPIRY, value) ->
    <<"must be seconds from 1 to 4294967295, or a duration such as 90s, 5m or 1h30m">>;
text(?PAYLOAD_FORMAT, value) ->
    <<"must be 0, 1 or utf-8">>;
text(?RESPONSE_TOPIC, value) ->
    <<"must be a topic without wildcards and control characters">>;
text(_, repeated) ->
    <<"must be there only once">>;
text(_, payload) ->
    <<"must be 0, because the payload is not UTF-8">>;
text(_, reply_subject) ->
    <<"must not be there, because the message has a reply subject">>;
text(_, too_long) ->
    <<"must be at most 65535 bytes long with the mountpoint">>;
text(_, {max_qos, 0}) ->
    <<"must be 0, because the broker takes no more">>;
text(_, {max_qos, 1}) ->
    <<"must be 0 or 1, because the broker takes no more">>;
text(_, not_retained) ->
    <<"must be false, because the broker has no retained messages">>.

%% The status line and the headers of the answer to a request that is refused.
-spec status(Header :: binary(), demand()) -> binary().
status(Header, Demand) ->
    iolist_to_binary([
        <<"NATS/1.0 400 Bad ">>, Header, <<"\r\n">>, Header, <<": ">>, text(Header, Demand), <<"\r\n\r\n">>
    ]).

%% -------------------------------------------------------------------------------------------
%% Delivery

%% The headers of a delivery with those that tell its properties. The publisher's own headers of these
%% names are left out, because they would be taken for properties.
-spec show(facts(), nats_gateway_nif:headers()) -> nats_gateway_nif:headers().
show(Facts, Headers) -> shown(pairs(Facts), Headers).

pairs(#{retain := Retain, qos := QoS, expiry := Expiry, payload_format := Format}) ->
    [{?RETAIN, <<"true">>} || Retain] ++
        [{?QOS, integer_to_binary(QoS)} || Retain orelse QoS > 0] ++
        [{?EXPIRY, integer_to_binary(Expiry)} || Expiry =/= undefined] ++
        [{?PAYLOAD_FORMAT, integer_to_binary(Format)} || Format =/= undefined].

shown([], undefined) ->
    undefined;
shown(Shown, undefined) ->
    {properties, Shown, undefined};
shown(Shown, Block) when is_binary(Block) ->
    nats_gateway_nif:show_properties(Block, Shown);
shown(Shown, {properties, Pairs, ContentType}) ->
    case {[Pair || Pair = {Name, _} <- Pairs, not is_property(Name)] ++ Shown, ContentType} of
        {[], undefined} -> undefined;
        {All, _} -> {properties, All, ContentType}
    end.

is_property(<<C, _/binary>> = Name) when (C =:= $M orelse C =:= $m), byte_size(Name) =< 19 ->
    lists:member(<<<<(lowercase(Byte))>> || <<Byte>> <= Name>>, ?LOWERCASE_NAMES);
is_property(_) ->
    false.

lowercase(Byte) when Byte >= $A, Byte =< $Z -> Byte + 32;
lowercase(Byte) -> Byte.
