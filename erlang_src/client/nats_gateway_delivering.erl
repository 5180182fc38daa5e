%% Turns deliveries of the broker into frames for a client: the login may deny a delivery, and each
%% delivery goes to certain sids.
-module(nats_gateway_delivering).

-export([permitted/3]).
-export([fan_out/3]).
-export([requested/3]).
-export([encode/2]).
-export([encode_timed/2]).
-export([bytes/1]).

-include("nats_gateway.hrl").
-include("nats_gateway_channel.hrl").

%% The bytes that a frame usually has besides its payload, and the bytes of memory that a delivery
%% takes while it is still a term.
-define(FRAME_OVERHEAD, 64).
-define(DELIVERY_OVERHEAD, 1024).

-type permissions() :: nats_gateway_permissions:permissions().
%% The values of headers that a client can read. With `false' it reads no headers.
-type headers() :: false | ascii | text.

%% Drops the deliveries that the login denies. A wildcard subscription may match their subjects.
-spec permitted([#delivery{}], permissions(), Mountpoint :: binary()) ->
    {[#delivery{}], permissions()}.
permitted(Deliveries, Permissions, Mountpoint) ->
    case nats_gateway_permissions:filters(Permissions) of
        false -> {Deliveries, Permissions};
        true -> permitted(Deliveries, [], Permissions, Mountpoint)
    end.

permitted([], Permitted, Permissions, _) ->
    {lists:reverse(Permitted), Permissions};
permitted([Delivery = #delivery{topic = Topic} | Deliveries], Permitted, Permissions, Mountpoint) ->
    Subject = nats_gateway_nif:subject(Topic, Mountpoint),
    case nats_gateway_permissions:deliver(Subject, Permissions) of
        {allow, NPermissions} ->
            permitted(Deliveries, [Delivery | Permitted], NPermissions, Mountpoint);
        {deny, NPermissions} ->
            permitted(Deliveries, Permitted, NPermissions, Mountpoint)
    end.

%% Looks up the sids of the deliveries, until there is a slice of frames. The other deliveries are
%% returned as the rest.
-spec fan_out([#delivery{}], headers(), nats_gateway_subscriptions:subscriptions()) -> #fan_out{}.
fan_out(Deliveries, Take, Subs) -> fan_out(Deliveries, Take, [], 0, 0, [], [], Subs).

fan_out([Delivery | Deliveries], Take, Frames, Bytes, Count, Unused, Declined, Subs) when
    Bytes < ?SLICE
->
    #delivery{
        key = Key, topic = Topic, reply = Reply, headers = Headers, payload = Payload, id = Id
    } = Delivery,
    case nats_gateway_subscriptions:deliver(Key, Topic, message_id(Id), Subs) of
        {[], [], NSubs} ->
            NDeclined = declined(Key, Id, NSubs) ++ Declined,
            fan_out(Deliveries, Take, Frames, Bytes, Count, Unused, NDeclined, NSubs);
        {Sids, NUnused, NSubs} ->
            Taken = take_headers(Take, Headers),
            Frame = #message{
                topic = Topic, sids = Sids, reply = Reply, headers = Taken, payload = Payload
            },
            Number = length(Sids),
            NBytes = Bytes + Number * frame_size(Topic, Taken, Payload),
            AllUnused = NUnused ++ Unused,
            fan_out(
                Deliveries, Take, [Frame | Frames], NBytes, Count + Number, AllUnused, Declined, NSubs
            )
    end;
fan_out(Rest, _, Frames, Bytes, Count, Unused, Declined, Subs) ->
    #fan_out{
        messages = lists:reverse(Frames),
        bytes = Bytes,
        count = Count,
        unused = Unused,
        declined = Declined,
        rest = Rest,
        subscriptions = Subs
    }.

message_id({Id, _}) -> Id;
message_id(Id) -> Id.

%% A member of a group may have left after the broker had assigned the delivery to it. Then another
%% member is to get the delivery.
declined(Key, {Id, Origin}, Subs) ->
    case nats_gateway_subscriptions:key_state(Key, Subs) of
        known -> [];
        _ -> [{Key, Origin} || not nats_gateway_subscriptions:is_taken(Key, Id, Subs)]
    end;
declined(_, _, _) ->
    [].

take_headers(false, _) -> undefined;
take_headers(ascii, {properties, Pairs, Type}) -> {ascii_properties, Pairs, Type};
take_headers(_, Headers) -> Headers.

%% Notes the reply subjects of the requests that the client gets, if its login may answer requests.
-spec requested([#message{}], permissions(), Mountpoint :: binary()) -> permissions().
requested(Messages, Permissions, Mountpoint) ->
    case nats_gateway_permissions:tracks_replies(Permissions) of
        false ->
            Permissions;
        true ->
            Now = erlang:monotonic_time(millisecond),
            lists:foldl(
                fun(Reply, Acc) ->
                    Subject = nats_gateway_nif:reply_subject(Reply, Mountpoint),
                    nats_gateway_permissions:requested(Subject, Now, Acc)
                end,
                Permissions,
                [Reply || #message{reply = Reply} <- Messages, Reply =/= undefined]
            )
    end.

%% Encodes a slice of messages. Returns with it the number of messages that are too long for a
%% control line, and the rest of the messages.
-spec encode([#message{}], Mountpoint :: binary()) ->
    {iodata(), TooLong :: non_neg_integer(), [#message{}]}.
encode(Messages, Mountpoint) -> encode(Messages, Mountpoint, ?SLICE).

%% The first call of the library is timed.
-spec encode_timed([#message{}], Mountpoint :: binary()) ->
    {iodata(), TooLong :: non_neg_integer(), [#message{}]}.
encode_timed(Messages, Mountpoint) ->
    Begin = erlang:monotonic_time(),
    Encoded = nats_gateway_nif:encode(Messages, Mountpoint),
    ok = nats_gateway_durations:add(encode, erlang:monotonic_time() - Begin),
    encoded(Encoded, Mountpoint, ?SLICE).

encode(Frames, Mountpoint, Room) ->
    encoded(nats_gateway_nif:encode(Frames, Mountpoint), Mountpoint, Room).

encoded(Encoded, Mountpoint, Room) ->
    case Encoded of
        Done = {_, _, []} ->
            Done;
        {Data, TooLong, Rest} ->
            case Room - iolist_size(Data) of
                Left when Left > 0 ->
                    {More, NTooLong, NRest} = encode(Rest, Mountpoint, Left),
                    {[Data | More], TooLong + NTooLong, NRest};
                _ ->
                    {Data, TooLong, Rest}
            end
    end.

%% About how many bytes the client will be sent for these steps.
-spec bytes([nats_gateway_output:step()]) -> non_neg_integer().
bytes(Steps) -> lists:sum([bytes_of(Step) || Step <- Steps]).

bytes_of({frames, Frames}) ->
    lists:sum([
        length(Sids) * frame_size(Topic, Headers, Payload)
     || #message{topic = Topic, sids = Sids, headers = Headers, payload = Payload} <- Frames
    ]);
bytes_of({Kind, Deliveries}) when Kind =:= deliver; Kind =:= permitted ->
    lists:sum([
        ?DELIVERY_OVERHEAD + frame_size(Topic, Headers, Payload)
     || #delivery{topic = Topic, headers = Headers, payload = Payload} <- Deliveries
    ]);
bytes_of(_) ->
    0.

frame_size(Topic, Headers, Payload) when is_binary(Headers) ->
    ?FRAME_OVERHEAD + byte_size(Topic) + byte_size(Headers) + byte_size(Payload);
frame_size(Topic, _, Payload) ->
    ?FRAME_OVERHEAD + byte_size(Topic) + byte_size(Payload).
