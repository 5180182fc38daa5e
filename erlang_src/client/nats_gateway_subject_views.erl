%% What a client sees of the subscriptions that a rule has mapped to other subjects
%% (docs/subject-mapping.md).
%%
%% The broker and the login's permissions know the subject that the rule leads to. The client sees
%% the names that it subscribed to: in the subjects of its messages, and in the texts of errors.
-module(nats_gateway_subject_views).

-export([new/0]).
-export([mappings/2]).
-export([mount/2]).
-export([added/3]).
-export([permitted_as/2]).
-export([permitted_as/4]).
-export([show/3]).

-include("nats_gateway.hrl").

-export_type([views/0]).

-type sid() :: nats_gateway_subscriptions:sid().

%% The subscriptions that were mapped. Some of them may have ended.
-opaque views() :: #{sid() => {nats_gateway_host:key(), Inverse :: binary()}}.

%% So many subscriptions that have ended may be there, besides as many as there are.
-define(ENDED, 32).

-spec new() -> views().
new() -> #{}.

%% The decoder with the rules of these settings, which hold for publishes and subscriptions that
%% follow.
-spec mappings(nats_gateway_config:config(), #decoder{}) -> #decoder{}.
mappings(#{mappings := Mappings}, Decoder) -> Decoder#decoder{mappings = Mappings};
mappings(_, Decoder) -> Decoder.

%% Adds the mountpoint to a subscription that was decoded without one.
-spec mount(#sub{}, Mountpoint :: binary()) -> #sub{}.
mount(Sub, Mountpoint) ->
    Sub#sub{filter = nats_gateway_nif:filter(permitted_as(Sub, <<>>), Mountpoint)}.

%% The subject of a subscription that the login's permissions are about.
-spec permitted_as(#sub{}, Mountpoint :: binary()) -> Subject :: binary().
permitted_as(#sub{inverse = Inverse, filter = Filter}, Mountpoint) when
    is_binary(Inverse), is_binary(Filter)
->
    nats_gateway_subscribing:subject(Filter, Mountpoint);
permitted_as(#sub{subject = Subject}, _) ->
    Subject.

%% The same for a subscription that the client has.
-spec permitted_as(sid(), nats_gateway_subscriptions:subscription(), Mountpoint :: binary(), views()) ->
    Subject :: binary().
permitted_as(Sid, #{key := {_, Filter}}, Mountpoint, Views) when is_map_key(Sid, Views) ->
    nats_gateway_subscribing:subject(Filter, Mountpoint);
permitted_as(_, #{subject := Subject}, _, _) ->
    Subject.

%% The subscription has been added to the others. Its sid may have been another one's before.
-spec added(#sub{}, nats_gateway_subscriptions:subscriptions(), views()) -> views().
added(#sub{inverse = undefined}, _, Views) when map_size(Views) =:= 0 ->
    Views;
added(#sub{inverse = undefined, sid = Sid}, _, Views) ->
    maps:remove(Sid, Views);
added(#sub{inverse = Inverse, sid = Sid, share_name = Share, filter = Filter}, Subs, Views) ->
    NViews = Views#{Sid => {{Share, Filter}, Inverse}},
    case map_size(NViews) > 2 * nats_gateway_subscriptions:count(Subs) + ?ENDED of
        true -> maps:filter(fun(Known, {Key, _}) -> is_needed(Known, Key, Subs) end, NViews);
        false -> NViews
    end.

%% A sid that has been unsubscribed still gets messages until the broker has confirmed it.
is_needed(Sid, Key, Subs) ->
    nats_gateway_subscriptions:member(Sid, Subs) orelse
        nats_gateway_subscriptions:key_state(Key, Subs) =:= leaving.

%% Several sids of one message may see different subjects.
-spec show([#message{}], Mountpoint :: binary(), views()) -> [#message{}].
show(Messages, _, Views) when map_size(Views) =:= 0 ->
    Messages;
show(Messages, Mountpoint, Views) ->
    lists:flatmap(fun(Message) -> split(Message, Mountpoint, Views) end, Messages).

split(Message = #message{topic = Topic, sids = Sids}, Mountpoint, Views) ->
    Groups = maps:groups_from_list(
        fun(Sid) ->
            case Views of
                #{Sid := {_, Inverse}} -> Inverse;
                #{} -> unchanged
            end
        end,
        Sids
    ),
    [
        case View of
            unchanged ->
                Message#message{sids = Its};
            Inverse when is_binary(Topic) ->
                Seen = nats_gateway_nif:topic_seen(Topic, Inverse, Mountpoint),
                Message#message{topic = Seen, sids = Its};
            _ ->
                Message#message{sids = Its}
        end
     || {View, Its} <- maps:to_list(Groups)
    ].
